//! The system call filter, as a range tree that the kernel walks quickly.
