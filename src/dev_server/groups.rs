//! URL groups: names for lists of endpoints, and the headers that go with a group.

use std::collections::BTreeMap;

use hyper::HeaderMap;

use super::target::{NameError, check_name, check_url};
use crate::clock::Timestamp;

/// A member of a URL group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) name: Option<String>,
    pub(super) url: String,
}

/// A URL group: its endpoints in the order in which they were added.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) endpoints: Vec<Endpoint>,
    /// Defaults for every publish to the group.
    pub(super) headers: HeaderMap,
    pub(super) created_at: Timestamp,
    pub(super) updated_at: Timestamp,
}

/// Why a change was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum GroupError {
    #[error("topic {name} not found")]
    Unknown { name: String },
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("quota {quota} exceeded, current limit: {limit}")]
    Quota { quota: &'static str, limit: usize },
}

/// Groups, and endpoints of one: the limits of the pay-as-you-go plan.
/// See <https://upstash.com/pricing/qstash>.
const MAX_GROUPS: usize = 100;
const MAX_ENDPOINTS: usize = 100;

/// The longest URL of an endpoint, so that all of them together have a limit too.
const MAX_URL: usize = 8_192;

/// All URL groups. A group without endpoints does not exist.
#[derive(Default)]
pub(super) struct Groups(BTreeMap<String, Group>);

impl Groups {
    pub(super) fn get(&self, name: &str) -> Result<&Group, GroupError> {
        self.0.get(name).ok_or_else(|| unknown(name))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &Group)> {
        self.0.iter()
    }

    /// Whether there is room for these endpoints, counted as new ones.
    pub(super) fn check_room(&self, name: &str, endpoints: &[Endpoint]) -> Result<(), GroupError> {
        let exceeded = |quota, limit| Err(GroupError::Quota { quota, limit });
        let known = self.0.get(name);
        if known.is_none() && self.0.len() >= MAX_GROUPS {
            return exceeded("maxUrlGroups", MAX_GROUPS);
        }
        let is_new = |endpoint: &&Endpoint| {
            known.is_none_or(|group| !group.endpoints.iter().any(|one| one.url == endpoint.url))
        };
        let new = endpoints.iter().filter(is_new).count();
        if known.map_or(0, |group| group.endpoints.len()) + new > MAX_ENDPOINTS {
            return exceeded("maxEndpointsPerUrlGroup", MAX_ENDPOINTS);
        }
        if endpoints
            .iter()
            .any(|endpoint| endpoint.url.len() > MAX_URL)
        {
            return exceeded("maxUrlLength", MAX_URL);
        }
        Ok(())
    }

    /// Adds endpoints, creating the group if there is none. An endpoint that is there
    /// already, by its name or else by its URL, is changed in its place.
    pub(super) fn upsert(
        &mut self,
        name: &str,
        endpoints: Vec<Endpoint>,
        now: Timestamp,
    ) -> Result<(), NameError> {
        check_name(name)?;
        for endpoint in &endpoints {
            endpoint.name.as_deref().map_or(Ok(()), check_name)?;
            check_url(&endpoint.url)?;
        }
        if endpoints.is_empty() {
            return Ok(());
        }
        let group = self.0.entry(name.to_owned()).or_insert_with(|| Group {
            endpoints: Vec::new(),
            headers: HeaderMap::new(),
            created_at: now,
            updated_at: now,
        });
        group.updated_at = now;
        for endpoint in endpoints {
            let known = &mut group.endpoints;
            let at = known
                .iter()
                .position(|other| other.name.is_some() && other.name == endpoint.name)
                .or_else(|| known.iter().position(|other| other.url == endpoint.url));
            match at.and_then(|at| known.get_mut(at)) {
                Some(other) => *other = endpoint,
                None => known.push(endpoint),
            }
        }
        Ok(())
    }

    /// Removes endpoints, each given by name or URL; the group goes with the last.
    pub(super) fn remove_endpoints(
        &mut self,
        name: &str,
        names_and_urls: &[String],
        now: Timestamp,
    ) -> Result<(), GroupError> {
        let group = self.0.get_mut(name).ok_or_else(|| unknown(name))?;
        group.updated_at = now;
        group.endpoints.retain(|endpoint| {
            !names_and_urls
                .iter()
                .any(|given| *given == endpoint.url || endpoint.name.as_ref() == Some(given))
        });
        if group.endpoints.is_empty() {
            self.0.remove(name);
        }
        Ok(())
    }

    /// Sets the group's default headers.
    pub(super) fn set_headers(
        &mut self,
        name: &str,
        headers: HeaderMap,
        now: Timestamp,
    ) -> Result<(), GroupError> {
        let group = self.0.get_mut(name).ok_or_else(|| unknown(name))?;
        group.headers = headers;
        group.updated_at = now;
        Ok(())
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }
}

fn unknown(name: &str) -> GroupError {
    GroupError::Unknown {
        name: name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(0);

    fn endpoint(name: Option<&str>, url: &str) -> Endpoint {
        Endpoint {
            name: name.map(str::to_owned),
            url: url.to_owned(),
        }
    }

    #[test]
    fn endpoints_are_changed_in_place_and_kept_in_order() {
        let mut groups = Groups::default();
        let first = vec![endpoint(Some("a"), "http://a"), endpoint(None, "http://b")];
        groups.upsert("g", first, NOW).unwrap();
        let second = vec![endpoint(Some("a"), "http://a2"), endpoint(None, "http://c")];
        groups.upsert("g", second, NOW).unwrap();
        groups
            .upsert("g", vec![endpoint(Some("b"), "http://b")], NOW)
            .unwrap();
        let expected = [
            endpoint(Some("a"), "http://a2"),
            endpoint(Some("b"), "http://b"),
            endpoint(None, "http://c"),
        ];
        assert_eq!(groups.get("g").unwrap().endpoints, expected);
    }

    #[test]
    fn a_group_goes_with_its_last_endpoint() {
        let mut groups = Groups::default();
        let endpoints = vec![endpoint(Some("a"), "http://a"), endpoint(None, "http://b")];
        groups.upsert("g", endpoints, NOW).unwrap();
        groups.remove_endpoints("g", &["a".into()], NOW).unwrap();
        assert!(groups.get("g").is_ok());
        groups
            .remove_endpoints("g", &["http://b".into()], NOW)
            .unwrap();
        assert_eq!(
            groups.get("g").unwrap_err().to_string(),
            "topic g not found"
        );
        assert!(groups.remove_endpoints("g", &[], NOW).is_err());
    }

    #[test]
    fn bad_names_and_urls_change_nothing() {
        let mut groups = Groups::default();
        for (group, name, url) in [
            ("a b", None, "http://a"),
            ("", None, "http://a"),
            ("g", Some("a/b"), "http://a"),
            ("g", None, "a"),
            ("g", None, ""),
        ] {
            let good = endpoint(None, "http://good");
            let endpoints = vec![good, endpoint(name, url)];
            assert!(groups.upsert(group, endpoints, NOW).is_err());
        }
        assert_eq!(groups.iter().count(), 0);
    }
}
