//! `nelly run --in SANDBOX`: a further container in the machine of a sandbox that runs.

use std::process::ExitCode;

use anyhow::Result;
use nelly_image::{Hold, Image, Reference};
use nelly_sandbox::connect::RunSpec;
use nelly_vmm::sys::terminal;

use super::detached::image_record;
use super::plan::PreparedRun;
use crate::args::RunArgs;
use crate::context::Context;
use crate::{life, out};

/// Starts the container, and with `-d` prints its id, else copies its streams until its end.
pub(super) fn inside(
    args: &RunArgs,
    word: &str,
    plan: &PreparedRun,
    reference: &Reference,
    (image, hold): (&Image, Option<Hold>),
    context: &Context,
) -> Result<ExitCode> {
    let sandbox = life::sandboxes(context)?.find(word)?;
    let size = args.tty.then(|| terminal::size(std::io::stdout()).ok()).flatten();
    let spec = RunSpec {
        name: Some(plan.options.name.clone()),
        image: image_record(reference, image)?,
        container: plan.container.clone(),
        size: size.map_or((0, 0), |size| (size.rows, size.columns)),
        detach: args.kept.detach,
    };
    let runtime = life::runtime()?;
    let code = runtime.block_on(async {
        let connection = life::connect(&sandbox).await?;
        let started = connection.run(&spec).await;
        drop(hold);
        match started? {
            Ok(run) => {
                let connection = connection.of_container(&run.id);
                match run.claimed {
                    Some(claimed) => {
                        life::attended((args.tty, args.interactive), &connection, "", claimed).await
                    }
                    None => out::line(&run.id).map(|()| 0),
                }
            }
            Err(failure) => {
                out::message(&failure.message);
                Ok(failure.code)
            }
        }
    });
    // The input thread may still block in a read of standard input; it ends with the process.
    runtime.shutdown_background();
    Ok(ExitCode::from(code?))
}
