//! The functions, over KVM of 64-bit Arm Linux; nothing on any other host.
#![cfg(all(target_os = "linux", target_arch = "aarch64"))]

pub mod gic;
pub mod system;
pub mod vcpu;
pub mod vm;

mod controller;
mod kick;
mod machine;
mod objects;
mod page;
mod processor;
mod registers;

use crate::answer::Answer;

/// What a failed call of KVM is answered with. It is told on the standard error as well: the
/// framework's answers are few, and who runs a test wants to know.
fn failed(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> Answer {
    move |error| {
        let answer = Answer::of_errno(error.errno());
        eprintln!("stand-in for Hypervisor.framework: {call}: {error}, told as {answer:?}");
        answer
    }
}
