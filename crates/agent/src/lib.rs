//! The guest agent: process 1 of every sandbox, which serves execs, files and metrics.
