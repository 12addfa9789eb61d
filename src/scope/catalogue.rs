//! The scope catalogue of a service: which scopes there are, what each implies, which domain each
//! belongs to, and whether granted scopes meet a required one.
//!
//! Everything that follows from the catalogue is worked out once, when it is made: for each entry
//! the set of entries whose holder holds it too. To ask is then a few lookups.

use std::collections::HashMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Domain, RequiredScope, Scope};
use crate::error::Violation;
use crate::text::Description;

/// One scope of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScopeEntry {
    pub name: Scope,
    /// What it is about; without one, the name up to its first colon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<Domain>,
    /// Names of the catalogue that who holds this one holds too, and what those imply.
    #[serde(default)]
    pub implies: Vec<Scope>,
    #[serde(default = "no_description")]
    pub description: Description,
}

fn no_description() -> Description {
    #[expect(clippy::expect_used, reason = "the empty text has no bad character")]
    Description::parse("").expect("a description may be empty")
}

/// A catalogue without contradictions. The empty one is that of a service that declares no scopes:
/// there any scope may be granted.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    /// Sorted, so that what a wildcard covers is a range.
    names: Vec<String>,
    /// For each name the entries that cover it by implication, itself among them.
    implied_by: Vec<Set>,
    /// For each domain the entries of which any is enough.
    domains: HashMap<String, Set>,
}

impl Catalogue {
    pub const ENTRIES_MAX: usize = 1000;

    /// # Errors
    /// What is wrong with it; the pointers begin with `pointer`, such as `/scopes`.
    pub fn new(entries: &[ScopeEntry], pointer: &str) -> Result<Self, Vec<Violation>> {
        if entries.len() > Self::ENTRIES_MAX {
            let detail = format!("must have at most {} entries", Self::ENTRIES_MAX);
            return Err(vec![Violation::new(pointer, detail)]);
        }
        let mut sorted: Vec<&ScopeEntry> = entries.iter().collect();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        let names: Vec<String> = sorted.iter().map(|e| e.name.to_string()).collect();
        check(entries, &names, pointer)?;

        let mut implied_by: Vec<Set> = (0..names.len())
            .map(|index| Set::of(names.len(), [index]))
            .collect();
        for (index, entry) in sorted.iter().enumerate() {
            for implied in &entry.implies {
                if let Ok(implied) = position(&names, implied.as_str())
                    && let Some(set) = implied_by.get_mut(implied)
                {
                    set.insert(index);
                }
            }
        }
        close(&mut implied_by);

        let mut domains: HashMap<String, Set> = HashMap::new();
        for (entry, set) in sorted.iter().zip(&implied_by) {
            let domain = match &entry.domain {
                Some(domain) => domain.as_str(),
                None => leading_segment(entry.name.as_str()),
            };
            domains
                .entry(domain.to_owned())
                .or_insert_with(|| Set::of(names.len(), []))
                .add(set);
        }
        Ok(Self {
            names,
            implied_by,
            domains,
        })
    }

    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Whether a scope may be granted: it is in the catalogue, or a wildcard over at least one that
    /// is. An empty catalogue knows every scope.
    pub fn knows(&self, scope: &Scope) -> bool {
        self.is_empty() || scope.is_all() || !self.covered(scope).is_empty()
    }

    /// Whether who was granted these scopes meets the requirement.
    pub fn satisfied(&self, granted: &[Scope], required: &RequiredScope) -> bool {
        granted.iter().any(|scope| match required {
            RequiredScope::Exact(required) => scope.covers(required),
            RequiredScope::AnyUnder(required) => scope.covers(required) || required.covers(scope),
            RequiredScope::AnyOf(domain) => {
                scope.is_all() || self.is_of_uncatalogued_domain(scope, domain.as_str())
            }
        }) || self.implied(granted, required)
    }

    /// Whether one of the granted scopes is, covers or implies an entry that is enough.
    fn implied(&self, granted: &[Scope], required: &RequiredScope) -> bool {
        if self.is_empty() {
            return false;
        }
        let any_of = |enough: &Set| {
            granted
                .iter()
                .any(|scope| self.covered(scope).any(|index| enough.contains(index)))
        };
        match required {
            RequiredScope::Exact(required) => position(&self.names, required.as_str())
                .ok()
                .and_then(|index| self.implied_by.get(index))
                .is_some_and(any_of),
            RequiredScope::AnyUnder(required) => {
                let mut enough = Set::of(self.names.len(), []);
                for set in self
                    .implied_by
                    .get(self.covered(required))
                    .unwrap_or_default()
                {
                    enough.add(set);
                }
                any_of(&enough)
            }
            RequiredScope::AnyOf(domain) => self.domains.get(domain.as_str()).is_some_and(any_of),
        }
    }

    /// A granted scope that the catalogue says nothing about belongs to the domain it begins with.
    fn is_of_uncatalogued_domain(&self, scope: &Scope, domain: &str) -> bool {
        leading_segment(scope.as_str()) == domain && self.covered(scope).is_empty()
    }

    /// The entries that a granted scope is or covers by its name.
    fn covered(&self, scope: &Scope) -> Range<usize> {
        if scope.is_all() {
            return 0..self.names.len();
        }
        let Some(under) = scope.under() else {
            return match position(&self.names, scope.as_str()) {
                Ok(index) => index..index + 1,
                Err(_absent) => 0..0,
            };
        };
        // In the order of bytes, the names that start with `a:` stand together.
        let start = self.names.partition_point(|name| name.as_str() <= under);
        let count = self
            .names
            .get(start..)
            .unwrap_or_default()
            .partition_point(|name| name.starts_with(under));
        start..start + count
    }
}

fn check(entries: &[ScopeEntry], sorted: &[String], pointer: &str) -> Result<(), Vec<Violation>> {
    let mut violations = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for (index, entry) in entries.iter().enumerate() {
        let name = entry.name.as_str();
        let mut violation = |member: &str, detail: String| {
            violations.push(Violation::new(
                format!("{pointer}/{index}/{member}"),
                detail,
            ));
        };
        if entry.name.is_all() || entry.name.under().is_some() {
            violation("name", "must be one scope, without a wildcard".to_owned());
        }
        if name.starts_with("domain:") {
            violation(
                "name",
                "must not start with \"domain:\": a required domain:x means any scope of x".into(),
            );
        }
        if !seen.insert(name) {
            violation("name", format!("there is another entry {name:?}"));
        }
        for (at, implied) in entry.implies.iter().enumerate() {
            if position(sorted, implied.as_str()).is_err() {
                violation(
                    &format!("implies/{at}"),
                    format!(
                        "must be the name of an entry; there is no {:?}",
                        implied.as_str()
                    ),
                );
            }
        }
    }
    if violations.is_empty() {
        Ok(())
    } else {
        Err(violations)
    }
}

fn position(names: &[String], name: &str) -> Result<usize, usize> {
    names.binary_search_by(|probe| probe.as_str().cmp(name))
}

fn leading_segment(name: &str) -> &str {
    name.split(':').next().unwrap_or(name)
}

/// A set of entries, one bit each.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Set(Box<[u64]>);

impl Set {
    fn of(size: usize, members: impl IntoIterator<Item = usize>) -> Self {
        let mut set = Self(vec![0; size.div_ceil(64)].into_boxed_slice());
        for member in members {
            set.insert(member);
        }
        set
    }

    fn insert(&mut self, member: usize) {
        if let Some(word) = self.0.get_mut(member / 64) {
            *word |= 1 << (member % 64);
        }
    }

    fn contains(&self, member: usize) -> bool {
        self.0
            .get(member / 64)
            .is_some_and(|word| word & (1 << (member % 64)) != 0)
    }

    fn add(&mut self, other: &Self) {
        for (word, more) in self.0.iter_mut().zip(&other.0) {
            *word |= more;
        }
    }
}

/// Transitive closure (Warshall, a row of bits at a time). A cycle makes its members equal.
fn close(rows: &mut [Set]) {
    for through in 0..rows.len() {
        let Some(more) = rows.get(through).cloned() else {
            return;
        };
        for row in rows.iter_mut().filter(|row| row.contains(through)) {
            row.add(&more);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(name: &str, domain: Option<&str>, implies: &[&str]) -> ScopeEntry {
        ScopeEntry {
            name: Scope::parse(name).unwrap(),
            domain: domain.map(|domain| Domain::parse(domain).unwrap()),
            implies: scopes(implies),
            description: no_description(),
        }
    }

    fn scopes(names: &[&str]) -> Vec<Scope> {
        names.iter().map(|n| Scope::parse(n).unwrap()).collect()
    }

    fn satisfied(catalogue: &Catalogue, granted: &str, required: &str) -> bool {
        let granted: Vec<&str> = granted.split_whitespace().collect();
        let required = RequiredScope::parse(required).unwrap();
        catalogue.satisfied(&scopes(&granted), &required)
    }

    fn invoicing() -> Catalogue {
        let entries = [
            entry("invoice:admin", None, &["invoice:write", "ledger:read"]),
            entry("invoice:write", None, &["invoice:read"]),
            entry("invoice:read", None, &[]),
            entry("ledger:read", Some("accounts"), &[]),
            entry("read_invoice", Some("invoice"), &[]),
            entry("invoice_read", Some("invoice"), &[]),
            entry("ping", None, &["pong"]),
            entry("pong", None, &["ping"]),
        ];
        Catalogue::new(&entries, "/scopes").unwrap()
    }

    #[test]
    fn a_requirement_is_met_as_the_table_says() {
        let catalogue = invoicing();
        for (granted, required, met) in [
            // A name is met by itself, what covers it and what implies it.
            ("invoice:read", "invoice:read", true),
            ("invoice:read", "invoice:write", false),
            ("invoice:*", "invoice:read", true),
            ("*", "invoice:read", true),
            ("invoice:write", "invoice:read", true),
            ("invoice:admin", "invoice:read", true),
            ("invoice:admin", "ledger:read", true),
            ("invoice:*", "ledger:read", true),
            ("invoice:write", "ledger:read", false),
            ("ledger:*", "invoice:read", false),
            ("ping", "pong", true),
            ("pong", "ping", true),
            ("", "invoice:read", false),
            ("pong invoice:read", "invoice:read", true),
            // A name the catalogue does not have is met by the names alone.
            ("invoice:new", "invoice:new", true),
            ("invoice:*", "invoice:new", true),
            ("invoice:admin", "invoice:new", false),
            // `a:*` is met by anything below.
            ("invoice:read", "invoice:*", true),
            ("invoice:new", "invoice:*", true),
            ("invoice:read:*", "invoice:*", true),
            ("invoice:*", "invoice:*", true),
            ("*", "invoice:*", true),
            ("invoice", "invoice:*", false),
            ("invoice_read", "invoice:*", false),
            ("invoicex:read", "invoice:*", false),
            ("ledger:read", "invoice:*", false),
            ("invoice:admin", "ledger:*", true),
            // `domain:a` is met by any scope of the domain, whatever its name.
            ("invoice:read", "domain:invoice", true),
            ("read_invoice", "domain:invoice", true),
            ("invoice_read", "domain:invoice", true),
            ("invoice:*", "domain:invoice", true),
            ("*", "domain:invoice", true),
            ("*", "domain:nowhere", true),
            ("invoice:admin", "domain:accounts", true),
            ("ledger:read", "domain:accounts", true),
            ("ledger:*", "domain:accounts", true),
            ("ledger:read", "domain:ledger", false),
            ("ledger:*", "domain:ledger", false),
            ("ledger:read", "domain:invoice", false),
            ("ping", "domain:pong", true),
            ("ping", "domain:invoice", false),
            ("", "domain:invoice", false),
            // `*` asks for everything there will ever be.
            ("*", "*", true),
            ("invoice:*", "*", false),
        ] {
            assert_eq!(
                satisfied(&catalogue, granted, required),
                met,
                "granted {granted:?}, required {required}"
            );
        }
    }

    #[test]
    fn scopes_that_look_alike_are_not_alike() {
        let none = Catalogue::default();
        for required in ["read_all", "READ", "rea", "read:x", "domain:rea", "read:*"] {
            assert!(!satisfied(&none, "read", required), "{required}");
        }
        assert!(!satisfied(&none, "access:*", "accessory:x"));
        assert!(satisfied(&none, "read", "read"));
    }

    #[test]
    fn without_a_catalogue_a_domain_is_what_the_name_begins_with() {
        let none = Catalogue::default();
        assert!(satisfied(&none, "invoice:read", "domain:invoice"));
        assert!(satisfied(&none, "invoice:*", "domain:invoice"));
        assert!(!satisfied(&none, "invoicex:read", "domain:invoice"));
        assert!(!satisfied(&none, "read_invoice", "domain:invoice"));
    }

    #[test]
    fn a_catalogue_knows_its_scopes_and_the_wildcards_over_them() {
        let catalogue = invoicing();
        for known in ["invoice:read", "invoice:*", "*"] {
            assert!(catalogue.knows(&scopes(&[known])[0]), "{known}");
        }
        for unknown in [
            "invoice:rea",
            "invoice",
            "invoices:*",
            "invoice:read:*",
            "ping:*",
        ] {
            assert!(!catalogue.knows(&scopes(&[unknown])[0]), "{unknown}");
            assert!(Catalogue::default().knows(&scopes(&[unknown])[0]));
        }
    }

    #[test]
    fn a_contradiction_is_named_by_its_place() {
        let entries = [
            entry("a", None, &["b", "c"]),
            entry("a", None, &[]),
            entry("b:*", None, &[]),
            entry("*", None, &[]),
            entry("domain:x", None, &["a:*"]),
        ];
        let violations = Catalogue::new(&entries, "/scopes").unwrap_err();
        let pointers: Vec<&str> = violations.iter().map(|v| v.pointer.as_str()).collect();
        assert_eq!(
            pointers,
            [
                "/scopes/0/implies/0",
                "/scopes/0/implies/1",
                "/scopes/1/name",
                "/scopes/2/name",
                "/scopes/3/name",
                "/scopes/4/name",
                "/scopes/4/implies/0",
            ]
        );
    }

    #[test]
    fn the_largest_catalogue_is_worked_out_at_once() {
        // A chain of all entries, the worst there is for a closure.
        let names: Vec<String> = (0..Catalogue::ENTRIES_MAX)
            .map(|i| format!("s:{i}"))
            .collect();
        let entries: Vec<ScopeEntry> = names
            .iter()
            .enumerate()
            .map(|(i, name)| match names.get(i + 1) {
                Some(next) => entry(name, None, &[next]),
                None => entry(name, None, &[]),
            })
            .collect();
        let catalogue = Catalogue::new(&entries, "").unwrap();
        assert!(satisfied(&catalogue, "s:0", "s:999"));
        assert!(!satisfied(&catalogue, "s:999", "s:0"));
        let more: Vec<ScopeEntry> = entries.iter().cycle().take(1001).cloned().collect();
        assert_eq!(Catalogue::new(&more, "/scopes").unwrap_err().len(), 1);
    }

    #[test]
    fn an_entry_reads_its_defaults_and_refuses_what_it_does_not_know() {
        let read: ScopeEntry = serde_json::from_str(r#"{"name": "a:b"}"#).unwrap();
        assert_eq!(read, entry("a:b", None, &[]));
        assert!(serde_json::from_str::<ScopeEntry>(r#"{"name": "a", "imply": []}"#).is_err());
    }

    const NAMES: [&str; 6] = ["a", "a:x", "a:y", "b:x", "b:x:y", "c"];

    /// Names, and for each the numbers of those it implies.
    fn catalogues() -> impl Strategy<Value = Vec<ScopeEntry>> {
        let implied = proptest::collection::vec(proptest::sample::subsequence(&NAMES, 0..3), 6);
        let domains = proptest::collection::vec(proptest::option::of("[ab]"), 6);
        (implied, domains).prop_map(|(implied, domains)| {
            NAMES
                .iter()
                .zip(implied)
                .zip(domains)
                .map(|((name, implied), domain)| entry(name, domain.as_deref(), &implied))
                .collect()
        })
    }

    /// The rules as they are said, without any preparation: spread what is granted until nothing
    /// is added, then look.
    fn naive(entries: &[ScopeEntry], granted: &[Scope], required: &RequiredScope) -> bool {
        let mut held = granted.to_vec();
        loop {
            let more: Vec<Scope> = entries
                .iter()
                .filter(|entry| held.iter().any(|scope| scope.covers(&entry.name)))
                .flat_map(|entry| std::iter::once(&entry.name).chain(&entry.implies))
                .filter(|scope| !held.contains(scope))
                .cloned()
                .collect();
            if more.is_empty() {
                break;
            }
            held.extend(more);
        }
        held.iter().any(|scope| match required {
            RequiredScope::Exact(required) => scope.covers(required),
            RequiredScope::AnyUnder(required) => scope.covers(required) || required.covers(scope),
            RequiredScope::AnyOf(domain) => {
                let entry = entries.iter().find(|entry| entry.name == *scope);
                let of = match entry.and_then(|entry| entry.domain.as_ref()) {
                    Some(domain) => domain.as_str(),
                    None => scope.as_str().split(':').next().unwrap(),
                };
                let is_catalogued = entries.iter().any(|entry| scope.covers(&entry.name));
                scope.is_all() || of == domain.as_str() && (entry.is_some() || !is_catalogued)
            }
        })
    }

    proptest! {
        #[test]
        fn what_is_worked_out_agrees_with_the_rules(
            entries in catalogues(),
            granted in proptest::collection::vec("(\\*|[abcd](:[xyz]){0,2}(:\\*)?)", 0..4),
            required in "(domain:[abcd]|\\*|[abcd](:[xyz]){0,2}(:\\*)?)",
        ) {
            let catalogue = Catalogue::new(&entries, "").unwrap();
            let granted: Vec<Scope> = granted.iter().map(|g| Scope::parse(g).unwrap()).collect();
            let required = RequiredScope::parse(&required).unwrap();
            prop_assert_eq!(
                catalogue.satisfied(&granted, &required),
                naive(&entries, &granted, &required)
            );
        }

        #[test]
        fn who_is_granted_more_can_do_no_less(
            entries in catalogues(),
            granted in proptest::collection::vec("(\\*|[abc](:[xy]){0,2}(:\\*)?)", 0..3),
            more in "(\\*|[abc](:[xy]){0,2}(:\\*)?)",
            required in "(domain:[abc]|\\*|[abc](:[xy]){0,2}(:\\*)?)",
        ) {
            let catalogue = Catalogue::new(&entries, "").unwrap();
            let mut granted: Vec<Scope> =
                granted.iter().map(|g| Scope::parse(g).unwrap()).collect();
            let required = RequiredScope::parse(&required).unwrap();
            if catalogue.satisfied(&granted, &required) {
                granted.push(Scope::parse(&more).unwrap());
                prop_assert!(catalogue.satisfied(&granted, &required));
            }
        }
    }
}
