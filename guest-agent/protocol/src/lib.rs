//! The agent's ttrpc protocol and port numbers.
