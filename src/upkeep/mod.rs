//! Keeping a repository whole and small: what is damaged and can be repaired, what may go, what may be harder to read.

pub mod check;
pub mod forget;
mod needs;
pub mod prune;
pub mod repair;
pub mod retention;
pub mod retier;
mod rewrite;
