//! Generates the messages and the asynchronous service and client from `proto/agent.proto`. Needs
//! no protoc.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/agent.proto");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .inputs(["proto/agent.proto"])
        .include("proto")
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize { async_all: true, gen_mod: false, ..Default::default() })
        .run()?;
    // The code generator's own mod.rs cannot carry attributes; generated code answers to no lint of
    // ours.
    fs::write(
        out.join("mod.rs"),
        "#[allow(warnings, clippy::all, clippy::pedantic, missing_docs)]\npub mod agent;\n\
         #[allow(warnings, clippy::all, clippy::pedantic, missing_docs)]\npub mod agent_ttrpc;\n",
    )?;
    Ok(())
}
