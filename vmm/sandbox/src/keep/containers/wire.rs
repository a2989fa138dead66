//! What clients ask of further containers, as `nelly.sandbox.v1` says it.

use std::path::PathBuf;

use nelly_protocol::sandbox::messages as m;
use nelly_vmm::text;
use ttrpc::Code;

use super::{RunError, Started, Wanted};
use crate::agent::StartFailure;
use crate::keep::service::{refused, size, status};
use crate::state::record::{ContainerRecord, ImageRecord};

/// A container's state.
#[must_use]
pub(in crate::keep) fn state(record: ContainerRecord) -> m::ContainerState {
    let exit = record.exit.map(|exit| m::ExitStatus {
        code: exit.code.into(),
        reason: exit.reason,
        detail: record.detail,
        ..Default::default()
    });
    m::ContainerState {
        id: record.id.to_string(),
        name: record.name.to_string(),
        image: record.image.reference,
        status: record.status.word().to_owned(),
        exit: exit.into(),
        ..Default::default()
    }
}

/// The container that a request describes.
///
/// # Errors
/// A part of the request is not valid.
pub(in crate::keep) fn wanted(request: m::RunRequest) -> ttrpc::Result<Wanted> {
    let invalid = |what: String| status(Code::INVALID_ARGUMENT, what);
    let name = Some(&request.name).filter(|name| !name.is_empty()).map(|name| name.parse());
    let container = serde_json::from_slice(&request.spec);
    Ok(Wanted {
        name: name.transpose().map_err(|error| invalid(format!("{error}")))?,
        size: Some(size(request.rows, request.columns)?),
        image: ImageRecord {
            reference: request.image,
            digest: request.image_digest,
            disk_paths: request.disk_paths.into_iter().map(PathBuf::from).collect(),
        },
        container: container.map_err(|error| invalid(format!("the container cannot be read: {error}")))?,
        detach: request.detach,
    })
}

/// The answer to a request.
///
/// # Errors
/// The container could not be made.
pub(in crate::keep) fn answer(
    result: Result<Result<Started, StartFailure>, RunError>,
) -> ttrpc::Result<m::RunResponse> {
    match result {
        Ok(Ok(started)) => Ok(m::RunResponse {
            id: started.id.to_string(),
            name: started.name.to_string(),
            token: started.token.map(Vec::from).unwrap_or_default(),
            ..Default::default()
        }),
        Ok(Err(failure)) => {
            let failure =
                m::ExitStatus { code: failure.code.into(), detail: failure.message, ..Default::default() };
            Ok(m::RunResponse { failure: Some(failure).into(), ..Default::default() })
        }
        Err(RunError::Sandbox(error)) => Err(refused(&error)),
        Err(error @ RunError::NameTaken(_)) => Err(status(Code::ALREADY_EXISTS, error.to_string())),
        Err(error @ RunError::Alone) => Err(status(Code::FAILED_PRECONDITION, error.to_string())),
        Err(error) => Err(status(Code::INTERNAL, text::chain(&error))),
    }
}
