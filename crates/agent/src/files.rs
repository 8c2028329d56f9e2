//! Later.
use crate::root::Root;
use std::sync::Arc;
/// Files.
#[derive(Debug)]
pub struct Files {
    root: Arc<Root>,
}
impl Files {
    pub(crate) fn new(root: Arc<Root>) -> Self {
        Self { root }
    }
}
