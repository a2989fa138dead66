mod args;
fn main() {
    let _ = <args::Cli as clap::Parser>::parse();
}
