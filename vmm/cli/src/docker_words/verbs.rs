//! Verbs that users of docker and podman type, and that Nelly spells otherwise or does not have.

/// A verb, and what to type instead; `None` where there is nothing.
type Row = (&'static str, Option<&'static str>);

/// What stands directly after `nelly`.
pub(super) const TOP: &[Row] = &[
    ("build", None),
    ("builder", None),
    ("buildx", None),
    ("checkpoint", None),
    ("commit", None),
    ("compose", None),
    ("container", Some("the verbs without it: nelly ps, nelly rm, nelly inspect")),
    ("context", Some("NELLY_HOME=DIR for a home of its own; there is no daemon to choose")),
    ("daemon", Some("nelly run -d: each sandbox has a process of its own, and there is no daemon")),
    ("delete", Some("nelly rm")),
    ("export", Some("nelly cp SANDBOX:/ - for a tar archive of the files of a sandbox that runs")),
    ("history", Some("nelly image history")),
    ("images", Some("nelly image ls")),
    ("import", Some("nelly run rootfs:DIR for a directory, or nelly image load for an archive")),
    ("info", Some("nelly doctor")),
    ("list", Some("nelly ps")),
    ("load", Some("nelly image load")),
    ("ls", Some("nelly ps")),
    ("plugin", None),
    ("pod", Some("nelly run --in SANDBOX for a further container in the machine of a sandbox")),
    ("prune", Some("nelly image prune for images, nelly gc for what killed commands left behind")),
    ("pull", Some("nelly image pull")),
    ("push", Some("nelly image push")),
    ("remove", Some("nelly rm")),
    ("resume", Some("nelly unpause")),
    ("rmi", Some("nelly image rm")),
    ("save", Some("nelly image save")),
    ("search", None),
    ("secret", None),
    ("service", None),
    ("stack", None),
    ("swarm", None),
    ("system", Some("nelly doctor, nelly gc and nelly image prune")),
    ("tag", Some("nelly image tag")),
    ("untag", Some("nelly image rm")),
    ("volume", Some("nelly run -v NAME:PATH: a volume belongs to one sandbox, and nelly rm removes both")),
];

/// What stands after `nelly image`.
pub(super) const IMAGE: &[Row] = &[
    ("build", None),
    ("delete", Some("nelly image rm")),
    ("export", Some("nelly image save")),
    ("import", Some("nelly run rootfs:DIR for a directory, or nelly image load for an archive")),
    ("remove", Some("nelly image rm")),
    ("rename", Some("nelly image tag, and nelly image rm for the old name")),
    ("rmi", Some("nelly image rm")),
    ("search", None),
    ("show", Some("nelly image inspect")),
    ("untag", Some("nelly image rm")),
];
