use super::walk::components;
use super::*;

fn tree() -> Tree {
    Tree::new(&Limits::default())
}

fn add(tree: &mut Tree, path: &str, kind: NodeKind) {
    tree.add(path.as_bytes(), Attr::default(), kind).unwrap();
}

fn symlink(target: &str) -> NodeKind {
    NodeKind::Symlink(target.as_bytes().into())
}

fn has(tree: &mut Tree, path: &str) -> bool {
    let parts = components(path.as_bytes()).unwrap();
    let (name, parents) = parts.split_last().unwrap();
    tree.walk(parents, false).unwrap().is_some_and(|dir| tree.child(dir, name).is_some())
}

/// What `n` marks cost over `n` files each: of the layer itself, and of the one below.
fn walked_by_marks(n: u64, mark: impl Fn(&mut Tree)) -> u64 {
    let mut tree = tree();
    for layer in 1..=2 {
        tree.begin_layer();
        for i in 0..n {
            add(&mut tree, &format!("d/{layer}/{i}"), NodeKind::Fifo);
        }
    }
    let before = tree.walked;
    for i in 0..n {
        mark(&mut tree);
        add(&mut tree, &format!("d/new{i}"), NodeKind::Fifo);
    }
    assert!(!has(&mut tree, "d/1/0") && has(&mut tree, "d/2/0") && has(&mut tree, "d/new0"));
    tree.walked - before
}

#[test]
fn whiteouts_cost_what_they_hide_and_not_their_number_times_it() {
    let marks: [&dyn Fn(&mut Tree); 2] =
        [&|tree| tree.opaque(b"d").unwrap(), &|tree| tree.whiteout(b"d").unwrap()];
    for mark in marks {
        // Each file once, and a few names for each mark and each file that follows it.
        for n in [500, 1000] {
            let walked = walked_by_marks(n, mark);
            assert!(walked <= 6 * n + 10, "{walked} names for {n} marks over {n} files");
        }
    }
}

#[test]
fn a_second_mark_hides_nothing_of_its_layer_and_a_later_layer_hides_all() {
    let mut tree = tree();
    for layer in 1..=3 {
        tree.begin_layer();
        add(&mut tree, &format!("a/b/{layer}"), NodeKind::Fifo);
        tree.opaque(b"a/b").unwrap();
        add(&mut tree, &format!("a/c/{layer}"), NodeKind::Fifo);
        tree.opaque(b"a").unwrap();
        tree.whiteout(b"a").unwrap();
        for old in 1..=3 {
            for dir in ["a/b", "a/c"] {
                assert_eq!(has(&mut tree, &format!("{dir}/{old}")), old == layer, "{dir} {old} {layer}");
            }
        }
    }
    tree.begin_layer();
    tree.whiteout(b"a").unwrap();
    assert!(!has(&mut tree, "a"));
}

/// A chain of links, each by a detour of many names, and files through the whole chain.
fn chain(tree: &mut Tree, links: u32) -> String {
    let detour = "x/../".repeat(400);
    add(tree, "x", NodeKind::Directory(Directory::default()));
    add(tree, "end", NodeKind::Directory(Directory::default()));
    add(tree, "l0", symlink("end"));
    for i in 1..links {
        add(tree, &format!("l{i}"), symlink(&format!("{detour}l{}", i - 1)));
    }
    format!("l{}", links - 1)
}

#[test]
fn a_links_target_is_walked_once() {
    let mut tree = tree();
    let start = chain(&mut tree, FOLLOW_MAX);
    let before = tree.walked;
    for i in 0..1000 {
        add(&mut tree, &format!("{start}/{i}"), NodeKind::Fifo);
    }
    let (walked, once) = (tree.walked - before, u64::from(FOLLOW_MAX) * 801);
    assert!(walked <= once + 1000, "{walked} names, {once} of them in links");
    assert!(has(&mut tree, "end/999"));
    // What is known of it counts as links nevertheless.
    add(&mut tree, "more", symlink(&start));
    let error = tree.add(b"more/x", Attr::default(), NodeKind::Fifo).unwrap_err();
    assert_eq!(error, TreeError::Loop);
}

#[test]
fn a_link_that_changes_leads_elsewhere() {
    let mut tree = tree();
    let start = chain(&mut tree, 3);
    add(&mut tree, &format!("{start}/one"), NodeKind::Fifo);
    add(&mut tree, "other", NodeKind::Directory(Directory::default()));
    add(&mut tree, "l1", symlink("other"));
    add(&mut tree, &format!("{start}/two"), NodeKind::Fifo);
    assert!(has(&mut tree, "end/one") && has(&mut tree, "other/two") && !has(&mut tree, "end/two"));
    // One link under two names is two links.
    add(&mut tree, "p/here/it", NodeKind::Fifo);
    add(&mut tree, "q/here/it", NodeKind::Fifo);
    add(&mut tree, "p/l", symlink("here"));
    tree.link(b"q/l", b"p/l").unwrap();
    add(&mut tree, "p/l/p", NodeKind::Fifo);
    add(&mut tree, "q/l/q", NodeKind::Fifo);
    assert!(has(&mut tree, "p/here/p") && has(&mut tree, "q/here/q"));
}

#[test]
fn what_is_walked_has_a_budget() {
    let limits = Limits { walked_names: 100_000, ..Limits::default() };
    let mut tree = Tree::new(&limits);
    let start = chain(&mut tree, 30);
    let refused = |error: &TreeError| matches!(error, TreeError::Limit { limit: "walked_names", .. });
    // A link that is replaced each time has to be walked each time.
    let error = (0..1000).find_map(|i| {
        add(&mut tree, "l0", symlink("end"));
        tree.add(format!("{start}/{i}").as_bytes(), Attr::default(), NodeKind::Fifo).err()
    });
    assert!(refused(&error.unwrap()));
    assert!(tree.walked <= limits.walked_names + 1);
    // Whiteouts do not overlook it.
    assert!(refused(&tree.whiteout(b"x/y").unwrap_err()) && refused(&tree.opaque(b"x").unwrap_err()));
}
