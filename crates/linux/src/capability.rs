//! Sets of capabilities: what execs get, and what only the agent keeps.
