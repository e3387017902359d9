//! Keeping a repository whole and small: what is damaged, what may go.

pub mod check;
pub mod forget;
pub mod prune;
pub mod retention;
