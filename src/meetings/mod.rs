//! Users' meetings, kept in their own instances.
