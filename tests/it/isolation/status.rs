//! What the kernel says of a running instance.
