//! What `GET /api/servers` says about chat servers.

use serde::Serialize;

use crate::session::ServerStatus;

/// A chat server in a list or route of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerDto {
    /// The list or route.
    pub route: Box<str>,
    /// The URL, without the secrets in its query.
    pub url: Box<str>,
    /// Calls of this route that are with it now, or dial it.
    pub calls: usize,
    /// What is known from its calls.
    #[serde(flatten)]
    pub status: ServerStatus,
}

/// What `GET /api/servers` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServerList {
    /// In the order of the configuration.
    pub servers: Vec<ServerDto>,
}

impl ServerList {
    /// Adds what another worker knows. Its list is the same, except while a changed configuration is passed on.
    pub fn add(&mut self, more: Self) {
        for other in more.servers {
            let same = |known: &&mut ServerDto| known.route == other.route && known.url == other.url;
            if let Some(known) = self.servers.iter_mut().find(same) {
                known.calls += other.calls;
                known.status.add(other.status);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::ServerState;

    fn list(url: &str, calls: usize, state: ServerState, seen_seconds: Option<u64>) -> ServerList {
        let status = ServerStatus {
            state,
            seen_seconds,
            failing_seconds: None,
            stage: None,
            reason: None,
            cause: None,
            advice: None,
            answered: 2,
            failures: 1,
        };
        ServerList { servers: vec![ServerDto { route: "production".into(), url: url.into(), calls, status }] }
    }

    #[test]
    fn what_a_worker_saw_last_counts() {
        use ServerState::{Failing, Unknown, Unwell, Well};
        for (a, b, expected) in [
            ((Failing, Some(9)), (Well, Some(3)), Well),
            ((Failing, Some(3)), (Well, Some(9)), Failing),
            ((Unknown, None), (Failing, Some(9)), Failing),
            ((Well, Some(9)), (Unknown, None), Well),
            ((Unwell, None), (Well, Some(3)), Unwell),
            ((Well, Some(3)), (Unwell, Some(9)), Unwell),
        ] {
            let mut all = list("ws://a/", 1, a.0, a.1);
            all.add(list("ws://a/", 2, b.0, b.1));
            all.add(list("ws://b/", 4, Failing, Some(0)));
            let server = &all.servers[0];
            assert_eq!((all.servers.len(), server.calls), (1, 3));
            assert_eq!(
                (server.status.state, server.status.answered, server.status.failures),
                (expected, 4, 2)
            );
        }
    }
}
