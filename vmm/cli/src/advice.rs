//! What is advised where something is missing. It depends on where this program lies: who built it
//! in a checkout has make and the emulated host, who installed a package has neither.

use std::path::{Path, PathBuf};

/// The checkout that the running program was built in.
fn checkout() -> Option<PathBuf> {
    around(&std::env::current_exe().ok()?)
}

fn around(program: &Path) -> Option<PathBuf> {
    let is_checkout =
        |dir: &&Path| dir.join("Makefile").is_file() && dir.join("tests/setup/nelly-shell").is_file();
    program.ancestors().skip(1).find(is_checkout).map(Path::to_owned)
}

/// Where machines can run although this host's KVM cannot run them.
pub(crate) fn another_host() -> String {
    another_host_of(checkout().as_deref())
}

fn another_host_of(checkout: Option<&Path>) -> String {
    match checkout {
        Some(dir) => {
            format!("`make -C {} shell` opens a shell in an emulated host with nelly on PATH", dir.display())
        }
        None => "nelly needs a host with hardware virtualisation; if this is a virtual machine, enable nested virtualisation for it".to_owned(),
    }
}

/// How a part of the installation that is missing or of another build comes back.
pub(crate) fn install() -> String {
    install_of(checkout().as_deref())
}

fn install_of(checkout: Option<&Path>) -> String {
    match checkout {
        Some(dir) => format!("`make -C {} build` builds all parts", dir.display()),
        None => "install Nelly again: its programs and files are of one build and belong together".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn make_is_advised_in_a_checkout_alone() {
        let top = tempfile::tempdir().unwrap();
        let program = top.path().join("target/nelly/bin/nelly");
        assert_eq!(around(&program), None);
        std::fs::write(top.path().join("Makefile"), "").unwrap();
        assert_eq!(around(&program), None, "another project's");
        std::fs::create_dir_all(top.path().join("tests/setup")).unwrap();
        std::fs::write(top.path().join("tests/setup/nelly-shell"), "").unwrap();
        assert_eq!(around(&program).as_deref(), Some(top.path()));
        for advice in [another_host_of(Some(top.path())), install_of(Some(top.path()))] {
            assert!(advice.contains(&format!("make -C {}", top.path().display())), "{advice}");
        }
        assert!(!another_host_of(None).contains("make") && !install_of(None).contains("make"));
    }
}
