//! Writes every target's seeds to `corpus/TARGET`, where the fuzzer looks for them.

use std::path::Path;

fn main() -> std::io::Result<()> {
    for target in nelly_fuzz::TARGETS {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
        std::fs::create_dir_all(&directory)?;
        for (index, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(directory.join(format!("seed-{index}")), seed)?;
        }
    }
    Ok(())
}
