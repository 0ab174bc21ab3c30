//! The process' environment as a value.
//!
//! In: the variables and the operating system's name of the user, read once at the start. Out:
//! look-ups. Guarantee: configuration reads nothing else of the environment, so that a test gives
//! it any environment without touching its own process.

use std::collections::BTreeMap;

/// Environment variables and the operating system's user.
#[derive(Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    os_user: Option<String>,
}

impl Environment {
    /// The environment of this process. Variables that are not UTF-8 are left out.
    pub fn of_process() -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Environment {
            variables,
            os_user: whoami::username().ok(),
        }
    }

    /// The operating system's user of this process, and no variable.
    pub fn without_variables() -> Self {
        Environment {
            variables: BTreeMap::new(),
            os_user: whoami::username().ok(),
        }
    }

    /// An environment of these variables and no user.
    pub fn new<N: Into<String>, V: Into<String>>(
        variables: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        let variables = variables
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        Environment {
            variables,
            os_user: None,
        }
    }

    /// The same environment with another user.
    #[cfg(test)]
    pub(crate) fn with_os_user(mut self, user: &str) -> Self {
        self.os_user = Some(user.to_owned());
        self
    }

    /// A variable's value; an empty one counts as not set.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// A variable's value, even an empty one.
    pub(crate) fn get_even_empty(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// All names, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.variables.keys().map(String::as_str)
    }

    /// The user that runs the process, by the operating system's name.
    pub(crate) fn os_user(&self) -> Option<&str> {
        self.os_user.as_deref()
    }
}
