//! The floor plan is a test: it reads the imports of every crate and fails on one that climbs, on a
//! cycle, on a fenced word outside its room, on `unsafe` and `cfg(target_*)` where they do not
//! belong, on a dependency that a crate must not have, on a conversion that gives another number
//! where one does not fit.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod check;
mod imports;
mod plan;
mod promises;
mod tokens;

use std::path::Path;

use plan::{CRATES, Crate};

#[test]
fn the_house_stands_as_planned() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = check::findings(top, CRATES);
    found.extend(check::unplanned(top, CRATES));
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn the_threat_model_promises_nothing_without_a_test() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = std::fs::read_to_string(top.join("docs/threat-model.md")).unwrap();
    let found = promises::findings(top, &text);
    assert!(found.is_empty(), "\n{}", found.join("\n"));
    // A boundary more, a test less, and a line of nothing.
    for (from, to, what) in [
        ("- **Seed**", "- **Sprout**", "\"Sprout\" has no line"),
        ("`out_of_descriptors`", "`out_of_nothing`", "there is no out_of_nothing in vmm/monitor"),
        // Functions that tests call, in a program of the usual kind and in one with a table.
        (
            "`the_first_bytes_go_on_when_they_name_who_is_allowed`",
            "`refuses`",
            "refuses in vmm/net/src/core/tests/rules.rs is no test that is run",
        ),
        (
            "`guest-agent/agent/tests/containers/machine.rs`: `nothing_of_the_guest_is_made_or_changed`",
            "`guest-agent/agent/tests/containers/bench.rs`: `reading`",
            "reading in guest-agent/agent/tests/containers/bench.rs is no test that is run",
        ),
        ("| Seed |", "| Seed | it grows | |\n| Seed |", "has no test"),
    ] {
        let changed = text.replacen(from, to, 1);
        let found = promises::findings(top, &changed).join("\n");
        assert!(found.contains(what), "{what}: {found}");
    }
}

/// As CONTRIBUTING says. rustfmt leaves comments alone.
#[test]
fn comments_are_at_most_100_columns_wide() {
    fn look(directory: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                if name != "target" {
                    look(&path, found);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let wide = |line: &str| line.trim_start().starts_with("//") && line.chars().count() > 100;
                let lines = text.lines().enumerate().filter(|(_, line)| wide(line));
                found.extend(lines.map(|(number, _)| format!("{}:{}", path.display(), number + 1)));
            }
        }
    }
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = Vec::new();
    for folder in ["vmm", "guest-agent", "tests", "fuzz"] {
        look(&top.join(folder), &mut found);
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// A crate of two floors that nothing is wrong with.
const SAMPLE: Crate = Crate {
    directory: "vmm/sample",
    floors: &[("low", 0), ("side", 1), ("middle", 1), ("high", 2)],
    halls: &[],
    stands_on: &["nelly-image"],
    never: &["tokio", "anyhow"],
    unsafe_rooms: &["low::raw"],
    target_rooms: &["low"],
    program: false,
};

const MANIFEST: &str = "[dependencies]\nnelly-image.workspace = true\n[lints]\nworkspace = true\n";

/// What is found in the sample crate with this one file more (or other).
fn findings_with(file: &str, text: &str) -> Vec<String> {
    let top = tempfile::tempdir().unwrap();
    let files = [
        ("Cargo.toml", MANIFEST),
        ("src/lib.rs", "pub mod low; pub mod middle; pub mod high; fn f() { high::g() }"),
        ("src/low/mod.rs", "#[cfg(target_os = \"linux\")] mod raw; //! crate::high\n"),
        ("src/low/raw.rs", "fn f() { unsafe { g() } }"),
        ("src/middle.rs", "use crate::low::Thing; const TEXT: &str = \"use crate::high; unsafe\";"),
        ("src/high/mod.rs", "use crate::{low::Thing, middle::{self, Other}}; mod part;"),
        ("src/high/part.rs", "use super::Name; use crate::middle;"),
    ];
    for (name, text) in files.into_iter().chain([(file, text)]) {
        let path = top.path().join("vmm/sample").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    check::findings(top.path(), &[SAMPLE])
}

#[test]
fn a_sound_crate_passes() {
    assert_eq!(findings_with("src/high/part.rs", ""), [""; 0]);
}

#[test]
fn every_way_to_break_the_plan_is_found() {
    let cases = [
        ("src/low/mod.rs", "use crate::middle::Other;", "`low` (floor 0) imports `middle::Other` (floor 1)"),
        (
            "src/low/raw.rs",
            "use crate::{\n    low, high::{deep::{Name}}};",
            "imports `high::deep::Name` (floor 2)",
        ),
        (
            "src/low/raw.rs",
            "fn f() { crate::high::g() }",
            "src/low/raw.rs:1: `low` (floor 0) imports `high::g`",
        ),
        ("src/low/raw.rs", "mod tests { fn f() { super::super::super::high::g() } }", "imports `high::g`"),
        (
            "src/middle.rs",
            "\n\npub use crate::side::Name;",
            "src/middle.rs:3: `middle` (floor 1) imports `side::Name`",
        ),
        ("src/middle.rs", "use crate::Loose;", "`middle` imports `Loose`, which is no room"),
        ("src/attic.rs", "", "room `attic` has no floor"),
        ("src/high/part.rs", "use super::other::A;", ""),
        ("src/bin/program.rs", "use sample::high::Part; fn main() { std::process::exit(1) }", ""),
        ("src/high/one.rs", "use super::two::A; mod two { use crate::high::two; }", ""),
        ("src/middle.rs", "use kvm_ioctls::Kvm;", "`kvm_ioctls` outside vmm/monitor hv::kvm"),
        ("src/middle.rs", "fn f() { tokio::spawn(g) }", "`tokio` in vmm/sample"),
        ("src/middle.rs", "fn f() { std::process::exit(1) }", "`process::exit` in a library"),
        (
            "src/middle.rs",
            "use std::process::{self}; fn f() { process::exit(1) }",
            "`process::exit` in a library",
        ),
        ("src/low/mod.rs", "unsafe fn f() {}", "`unsafe` outside low::raw"),
        (
            "src/low/mod.rs",
            "fn f(n: u64) -> u8 {\n    u8::try_from(n & g(1))\n        .unwrap_or(0)\n}",
            "src/low/mod.rs:2: `try_from(..).unwrap_or(..)` hides what does not fit",
        ),
        ("src/low/mod.rs", "fn f() { x = n.try_into().unwrap_or_default(); }", "hides what does not fit"),
        ("src/low/mod.rs", "fn f() { n.and_then(|n| u8::try_from(n).ok()).unwrap_or(9) }", "hides what"),
        ("src/low/mod.rs", "fn f() { u8::try_from(n).ok().unwrap_or(u8::MAX) }", "hides what does not fit"),
        (
            "src/low/mod.rs",
            "fn f() { n.map(u8::try_from).unwrap_or(0); u8::try_from(n).expect(\"it fits\") }",
            "",
        ),
        ("src/low/mod.rs", "fn f() { g(u8::try_from(n)?, m.unwrap_or(0)).unwrap_or(0) }", ""),
        (
            "src/middle.rs",
            "#[cfg(all(unix, not(target_os = \"linux\")))] fn f() {}",
            "`cfg(target_*)` outside low",
        ),
        ("src/middle.rs", "fn f() { if cfg!(target_arch = \"x86_64\") {} }", "`cfg(target_*)` outside low"),
        ("Cargo.toml", "[dependencies]\ntokio = \"1\"\n[lints]\nworkspace = true\n", "depends on tokio"),
        (
            "Cargo.toml",
            "[target.'cfg(unix)'.dependencies]\nanyhow.workspace = true\n[lints]\nworkspace = true\n",
            "depends on anyhow",
        ),
        (
            "Cargo.toml",
            "[dependencies.nelly-vmm]\nversion = \"1\"\n[lints]\nworkspace = true\n",
            "depends on nelly-vmm",
        ),
        ("Cargo.toml", "[dev-dependencies]\ntokio = \"1\"\n[lints]\nworkspace = true\n", ""),
        ("Cargo.toml", "[dependencies]\n", "does not take the lints"),
    ];
    for (file, text, sentence) in cases {
        let found = findings_with(file, text);
        if sentence.is_empty() {
            assert_eq!(found, [""; 0], "{file}: {text}");
        } else {
            assert!(found.iter().any(|line| line.contains(sentence)), "{text:?} gives {found:?}");
        }
    }
}

#[test]
fn cycles_are_found_between_rooms_and_inside_them() {
    const LOOSE: Crate = Crate { floors: &[], halls: &["a"], ..SAMPLE };
    let top = tempfile::tempdir().unwrap();
    let src = top.path().join("vmm/sample/src");
    std::fs::create_dir_all(src.join("a")).unwrap();
    std::fs::write(top.path().join("vmm/sample/Cargo.toml"), MANIFEST).unwrap();
    let write = |name: &str, text: &str| std::fs::write(src.join(name), text).unwrap();
    write("lib.rs", "mod a; mod b; mod c;");
    write("a/mod.rs", "mod x; mod y; use crate::b::B; use self::x::X;");
    write("a/x.rs", "use super::A;");
    write("a/y.rs", "use super::x::X;");
    write("b.rs", "use crate::c::C;");
    write("c.rs", "#[cfg(test)] mod tests { use crate::a::A; }");
    assert_eq!(check::findings(top.path(), &[LOOSE]), [""; 0]);

    write("c.rs", "use crate::a::A;");
    assert_eq!(check::findings(top.path(), &[LOOSE]), ["vmm/sample: a cycle: a → b → c → a"]);

    write("c.rs", "");
    write("a/x.rs", "use super::y::Y;");
    assert_eq!(check::findings(top.path(), &[LOOSE]), ["vmm/sample: a cycle: a::x → a::y → a::x"]);
    // A room is not a hall: what its modules do among themselves is its own affair.
    assert_eq!(check::findings(top.path(), &[Crate { halls: &[], ..LOOSE }]), [""; 0]);
}

#[test]
fn a_word_of_one_architecture_is_found_where_none_may_be_known() {
    const MONITOR: Crate = Crate {
        directory: "vmm/monitor",
        floors: &[("arch", 0), ("hv", 1), ("bus", 2), ("virtio", 3), ("machine", 4)],
        ..SAMPLE
    };
    let top = tempfile::tempdir().unwrap();
    let src = top.path().join("vmm/monitor/src");
    let write = |name: &str, text: &str| {
        let path = src.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    std::fs::create_dir_all(&src).unwrap();
    std::fs::write(top.path().join("vmm/monitor/Cargo.toml"), MANIFEST).unwrap();
    write("lib.rs", "mod arch; mod hv; mod bus; mod virtio; mod machine;");
    write("arch.rs", "pub mod x86_64 { pub mod cpuid {} }");
    write("hv/kvm.rs", "fn ioapic(gsi: u32) { cpuid(); }");
    write("machine/board/mod.rs", "use crate::arch::x86_64::cpuid;");
    write("machine/tests.rs", "use crate::arch::x86_64; const GSI: u32 = 5;");
    let fine = [
        ("hv/mod.rs", "//! x86\nmod kvm; fn f() -> &'static str { \"acpi\" } fn hotplug_size() {}"),
        ("bus/mod.rs", "fn f(scorpion: u32) {} #[cfg(test)] mod tests { use crate::arch::x86_64; }"),
        ("virtio/mod.rs", ""),
        ("machine/mod.rs", "mod board; mod tests;"),
    ];
    for (file, text) in fine {
        write(file, text);
    }
    assert_eq!(check::findings(top.path(), &[MONITOR]), [""; 0]);
    for (file, text, word) in [
        ("hv/mod.rs", "use crate::arch::x86_64;", "x86"),
        ("hv/mod.rs", "enum Exit { PioRead }", "pio"),
        ("bus/mod.rs", "fn f(gsi: u32) {}", "gsi"),
        ("virtio/mod.rs", "struct IoApic;", "apic"),
        ("virtio/queue/mod.rs", "fn io_apic() {}", "apic"),
        ("machine/assemble.rs", "fn f() { mp_table(); }", "mptable"),
        ("machine/mod.rs", "const ACPI_RESET: u8 = 1;", "acpi"),
        ("machine/mod.rs", "fn guest_tsc() {}", "tsc"),
        ("machine/mod.rs", "use x::cpuid;", "cpuid"),
        ("machine/mod.rs", "use x::I8042;", "i8042"),
        ("machine/mod.rs", "fn raise_pic(line: u32) {}", "pic"),
        ("machine/mod.rs", "struct PitChannel;", "pit"),
        ("machine/mod.rs", "fn io_port() {}", "ioport"),
        ("machine/mod.rs", "mod bz_image;", "bzimage"),
        ("machine/mod.rs", "const E820_MAX: u8 = 1;", "e820"),
        ("machine/mod.rs", "fn real_mode() {}", "realmode"),
        ("machine/mod.rs", "fn vgic() {}", "vgic"),
    ] {
        write(file, text);
        let found = check::findings(top.path(), &[MONITOR]).join("\n");
        assert!(found.contains(&format!("`{word}` is a word of one architecture")), "{text}: {found}");
        let before = fine.iter().find(|(name, _)| *name == file).map_or("", |(_, text)| *text);
        write(file, before);
    }
    assert_eq!(check::findings(top.path(), &[MONITOR]), [""; 0]);
    // Each word of the list, as a name of its own and as a part of one.
    let names = plan::FOREIGN.iter().map(|word| format!("fn {word}() {{}} fn set_{word}_line() {{}}\n"));
    write("machine/mod.rs", &names.collect::<String>());
    let found = check::findings(top.path(), &[MONITOR]);
    assert_eq!(found.len(), 2 * plan::FOREIGN.len(), "{}", found.join("\n"));
    write("machine/mod.rs", "mod board; mod tests;");
    assert_eq!(check::findings(top.path(), &[MONITOR]), [""; 0]);
    // No other crate has rooms that may, but for those that are named.
    let sample = findings_with("src/high/part.rs", "fn f() { read_msr(); }");
    assert!(sample.iter().any(|line| line.contains("`msr` is a word")), "{sample:?}");
}

/// A room that may know an architecture and is gone, or knows none, is no longer an exception.
#[test]
fn every_room_that_may_know_an_architecture_is_there_and_does() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let unused = check::unused_knowledge(top);
    assert!(unused.is_empty(), "\n{}", unused.join("\n"));
}

#[test]
fn a_crate_without_a_place_is_found() {
    let top = tempfile::tempdir().unwrap();
    std::fs::write(
        top.path().join("Cargo.toml"),
        "[workspace]\nmembers = [\n \"vmm/sample\", \"vmm/shed\", \"tests\",\n]\n",
    )
    .unwrap();
    assert_eq!(
        check::unplanned(top.path(), &[SAMPLE]),
        ["vmm/shed is a member of the workspace without a place in the plan"]
    );
}
