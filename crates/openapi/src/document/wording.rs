//! What an operator says of documents.

/// What documents say.
#[derive(Debug, Clone)]
pub struct Documents {
    /// The title at the root.
    pub name: Option<String>,
    /// The description at the root.
    pub description: Option<String>,
    /// The version at the root, where the command line names one.
    pub version: Option<String>,
    /// How operations are called.
    pub operation_ids: OperationIds,
}

impl Documents {
    /// For the document of one server among several: it speaks for itself.
    #[must_use]
    pub fn of_server(&self) -> Self {
        Self {
            name: None,
            description: None,
            version: None,
            operation_ids: self.operation_ids,
        }
    }
}

/// How operations are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationIds {
    /// As their tools.
    Tool,
    /// `tool_NAME_post`, as `FastAPI` made them for mcpo.
    Mcpo,
}
