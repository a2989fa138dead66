//! Generates the messages and the asynchronous services and clients from `proto/`. Needs no protoc.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .inputs(["proto/agent.proto", "proto/sandbox.proto"])
        .include("proto")
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize { async_all: true, gen_mod: false, ..Default::default() })
        .run()?;
    // The code generator's own mod.rs cannot carry attributes; generated code answers to no lint of
    // ours.
    let module = |name: &str| {
        format!(
            "#[allow(warnings, clippy::all, clippy::pedantic, clippy::restriction, missing_docs)]\npub mod {name};\n\
             #[allow(warnings, clippy::all, clippy::pedantic, clippy::restriction, missing_docs)]\npub mod {name}_ttrpc;\n"
        )
    };
    fs::write(out.join("mod.rs"), module("agent") + &module("sandbox"))?;
    Ok(())
}
