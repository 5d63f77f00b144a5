//! What was done to what must be watched, in a chain that shows gaps.
