//! Random file operations of two mounts: what can happen, what should come of it, and how it is done for real.

pub mod model;
pub mod ops;
pub mod real;
