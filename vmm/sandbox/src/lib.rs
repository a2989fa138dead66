//! A container in a machine: specification, agent client, life.
