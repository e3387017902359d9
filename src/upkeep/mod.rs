//! Keeping a repository whole and small: what is damaged and can be repaired, what may go.

pub mod check;
pub mod forget;
pub mod prune;
pub mod repair;
pub mod retention;
mod rewrite;
