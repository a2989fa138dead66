//! A machine: assembled, run, paused, ended.
