//! The paths that a crate's files name, each resolved to a path from the crate's root.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::tokens::{Kind, Token, tokens};

/// A file of a crate: where it stands among the crate's modules, and its tokens.
pub(crate) struct Source {
    /// The file, for messages.
    pub(crate) file: PathBuf,
    /// Its modules from the root; empty for `lib.rs` and `main.rs`.
    pub(crate) module: Vec<String>,
    /// What it holds.
    pub(crate) tokens: Vec<Token>,
}

/// One path that a file names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Import {
    /// The module that names it, inline modules included.
    pub(crate) from: Vec<String>,
    /// What it names, from the crate's root. A glob gives its module.
    pub(crate) to: Vec<String>,
    /// The line.
    pub(crate) line: usize,
}

/// Every Rust file under `src`, in order of names.
pub(crate) fn sources(src: &Path) -> Vec<Source> {
    let mut files = Vec::new();
    collect(src, &mut files);
    files.sort();
    let mut found: Vec<Source> = files
        .into_iter()
        .map(|file| {
            let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            let module = module_of(file.strip_prefix(src).unwrap());
            Source { file, module, tokens: tokens(&text) }
        })
        .collect();
    let elsewhere = path_attributes(&found);
    for source in &mut found {
        if let Some(module) = elsewhere.get(&source.file) {
            source.module.clone_from(module);
        }
    }
    found
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn module_of(relative: &Path) -> Vec<String> {
    let mut module: Vec<String> =
        relative.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let last = module.last().map(String::as_str);
    if last == Some("mod") || module.len() == 1 && matches!(last, Some("lib" | "main")) {
        module.pop();
    }
    module
}

/// Files that `#[path = "..."] mod name;` puts under another name than their own.
fn path_attributes(sources: &[Source]) -> BTreeMap<PathBuf, Vec<String>> {
    let mut found = BTreeMap::new();
    for source in sources {
        for (index, window) in source.tokens.windows(4).enumerate() {
            let [hash, open, path, equals] = window else { continue };
            if !(hash.is_mark('#') && open.is_mark('[') && path.is_word("path") && equals.is_mark('=')) {
                continue;
            }
            let rest = &source.tokens[index + 4..];
            let Some(Kind::Text(file)) = rest.first().map(|token| &token.kind) else { continue };
            let name = rest.iter().skip_while(|token| !token.is_word("mod")).nth(1).and_then(Token::word);
            if let (Some(name), Some(directory)) = (name, source.file.parent()) {
                let module = source.module.iter().cloned().chain([name.to_owned()]).collect();
                found.insert(directory.join(file), module);
            }
        }
    }
    found
}

impl Source {
    /// What it names by `crate::`, `self::` and `super::`, in imports and in code.
    pub(crate) fn imports(&self) -> Vec<Import> {
        let mut found = Vec::new();
        let mut module = self.module.clone();
        let mut inline: Vec<usize> = Vec::new(); // depths at which inline modules end
        let mut depth = 0;
        for (at, token) in self.tokens.iter().enumerate() {
            match &token.kind {
                Kind::Mark('{') => {
                    depth += 1;
                    if at >= 2 && self.tokens[at - 2].is_word("mod") {
                        module.extend(self.tokens[at - 1].word().map(str::to_owned));
                        inline.push(depth);
                    }
                }
                Kind::Mark('}') => {
                    if inline.last() == Some(&depth) {
                        inline.pop();
                        module.pop();
                    }
                    depth -= 1;
                }
                Kind::Word(word) if matches!(word.as_str(), "crate" | "self" | "super") => {
                    let starts = self.tokens.get(at + 1).is_some_and(|next| next.kind == Kind::PathSep);
                    let continues = at > 0 && self.tokens[at - 1].kind == Kind::PathSep;
                    if starts && !continues {
                        self.path(at, &module, &mut found);
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// Reads the path that begins at `at`.
    fn path(&self, mut at: usize, module: &[String], found: &mut Vec<Import>) {
        let line = self.tokens[at].line;
        let mut base = match self.tokens[at].word() {
            Some("crate") => Vec::new(),
            Some("self") => module.to_vec(),
            _ => module[..module.len().saturating_sub(1)].to_vec(),
        };
        at += 2;
        while self.tokens.get(at).is_some_and(|token| token.is_word("super")) {
            base.pop();
            at += 2;
        }
        for to in self.tree(&mut at, base) {
            found.push(Import { from: module.to_vec(), to, line });
        }
    }

    /// Reads what follows a `::`: a name, a glob, or a list in braces. Leaves `at` behind it.
    fn tree(&self, at: &mut usize, mut base: Vec<String>) -> Vec<Vec<String>> {
        loop {
            let Some(token) = self.tokens.get(*at) else { return vec![base] };
            match &token.kind {
                Kind::Word(word) => {
                    *at += 1;
                    if word != "self" {
                        base.push(word.clone());
                    }
                    if self.tokens.get(*at).is_none_or(|next| next.kind != Kind::PathSep) {
                        return vec![base];
                    }
                    *at += 1;
                }
                Kind::Mark('{') => {
                    *at += 1;
                    let mut all = Vec::new();
                    while self.tokens.get(*at).is_some_and(|token| !token.is_mark('}')) {
                        all.extend(self.tree(at, base.clone()));
                        // Over `as name` and the comma.
                        while self.tokens.get(*at).is_some_and(|t| !t.is_mark(',') && !t.is_mark('}')) {
                            *at += 1;
                        }
                        if self.tokens.get(*at).is_some_and(|token| token.is_mark(',')) {
                            *at += 1;
                        }
                    }
                    *at += 1;
                    return all;
                }
                _ => {
                    // A glob, or the `<` of generic arguments.
                    *at += 1;
                    return vec![base];
                }
            }
        }
    }
}

#[test]
fn trees_inline_modules_and_code() {
    let text = r"
        use crate::{one::{self, Two as Deux, three::*}, four};
        use super::five;
        mod tests { use super::*; fn f() { crate::six::seven::<u8>(); super::super::eight() } }
        fn g() -> self::nine::Ten { }
    ";
    let source = Source { file: "x.rs".into(), module: vec!["a".into(), "b".into()], tokens: tokens(text) };
    let found: Vec<String> = source
        .imports()
        .iter()
        .map(|import| format!("{} -> {}", import.from.join("::"), import.to.join("::")))
        .collect();
    assert_eq!(
        found,
        [
            "a::b -> one",
            "a::b -> one::Two",
            "a::b -> one::three",
            "a::b -> four",
            "a::b -> a::five",
            "a::b::tests -> a::b",
            "a::b::tests -> six::seven",
            "a::b::tests -> a::eight",
            "a::b -> a::b::nine::Ten",
        ]
    );
}
