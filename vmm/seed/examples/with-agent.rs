//! `with-agent PROGRAM SEED` writes a seed of default settings that brings this program as the
//! agent, for cloud-init's own judges (`tests/seed`): `nelly boot --agent` hands its seed to the
//! machine and leaves no file.

use std::error::Error;
use std::{env, fs};

use nelly_seed::{Seed, Settings, Texts};

fn main() -> Result<(), Box<dyn Error>> {
    let [program, seed]: [String; 2] =
        env::args().skip(1).collect::<Vec<_>>().try_into().map_err(|_| "usage: with-agent PROGRAM SEED")?;
    let disk = Seed::new(&Settings::default(), Texts::default())?.with_agent(fs::read(program)?)?.disk()?;
    Ok(fs::write(seed, disk)?)
}
