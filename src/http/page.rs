//! Lists on the wire: `?limit=&cursor=` and `{"items": [..], "next_cursor": ..}`.
//!
//! A cursor says where a page ends. It is MACed and bound to the tenant, the list with its order, and
//! the filter, so that nobody can make one up or carry one elsewhere; its key serves nothing else.

use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpRequest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use utoipa::{IntoParams, ToSchema};

use super::gate::{Gate, Gated};
use super::problem::Problem;
use super::query::Params;
use crate::error::{Error, Violation};
use crate::id::TenantId;
use crate::master::{DerivedKey, MasterKey};
use crate::page::{LIMIT_DEFAULT, LIMIT_MAX, Page, PageRequest, Position};
use crate::time::Timestamp;

/// Bytes of HMAC-SHA-256 that a cursor carries: 128 bits (RFC 2104 §5 allows half).
const MAC_BYTES: usize = 16;

/// Seals and opens cursors.
#[derive(Clone, Debug)]
pub struct CursorKey(DerivedKey);

/// The query of a list: a filter of its own, `limit` and `cursor`.
///
/// `F` denies unknown fields; [`NoFilter`] has none.
#[derive(Debug)]
pub struct List<F> {
    pub filter: F,
    pub page: PageQuery,
}

/// For lists that cannot be filtered.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoFilter {}

/// Which page is asked for, as it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageQuery {
    limit: u32,
    cursor: Option<String>,
    filter_digest: [u8; 32],
}

/// A page on the wire.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct PageBody<T> {
    pub items: Vec<T>,
    /// For `cursor`, to get the next page; `null` on the last one.
    #[schema(required = true)]
    pub next_cursor: Option<String>,
}

/// The parameters of every list, for `params(..)` of an operation.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "only its description is used")]
pub struct PageParams {
    /// How many items a page has at most.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// The `next_cursor` of the page before, with the same filter.
    cursor: Option<String>,
}

/// What a cursor holds: the last item of the page before.
#[derive(Serialize, Deserialize)]
struct Content {
    at: i64,
    id: String,
}

impl CursorKey {
    pub fn new(master: &MasterKey) -> Self {
        Self(master.derive("keystead cursor 1"))
    }

    fn seal(&self, binding: &[&[u8]; 3], position: &Position) -> String {
        let content = Content {
            at: position.at.millis(),
            id: position.id.clone(),
        };
        // A number and a string: serialization cannot fail.
        let content = serde_json::to_vec(&content).unwrap_or_default();
        let mac = self.mac(binding, &content);
        let mut bytes = mac.get(..MAC_BYTES).unwrap_or_default().to_vec();
        bytes.extend_from_slice(&content);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn open(&self, binding: &[&[u8]; 3], cursor: &str) -> Option<Position> {
        use subtle::ConstantTimeEq as _;
        let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let (given, content) = bytes.split_at_checked(MAC_BYTES)?;
        let mac = self.mac(binding, content);
        if !bool::from(mac.get(..MAC_BYTES)?.ct_eq(given)) {
            return None;
        }
        let content: Content = serde_json::from_slice(content).ok()?;
        Some(Position {
            at: Timestamp::from_millis(content.at),
            id: content.id,
        })
    }

    fn mac(&self, binding: &[&[u8]; 3], content: &[u8]) -> [u8; 32] {
        let [tenant, list, filter] = binding;
        self.0.mac(&[tenant, list, filter, content])
    }
}

impl PageQuery {
    fn parse(params: &mut Params<'_>) -> Result<Self, Violation> {
        let limit = match params.take("limit")? {
            None => LIMIT_DEFAULT,
            Some(text) => text
                .parse()
                .ok()
                .filter(|limit| (1..=LIMIT_MAX).contains(limit))
                .ok_or_else(|| {
                    Violation::new(
                        "limit",
                        format!("must be a whole number from 1 to {LIMIT_MAX}"),
                    )
                })?,
        };
        let cursor = params.take("cursor")?;
        let mut digest = Sha256::new();
        for (name, value) in params.sorted() {
            for part in [name, value] {
                digest.update(part.len().to_be_bytes());
                digest.update(part);
            }
        }
        Ok(Self {
            limit,
            cursor,
            filter_digest: digest.finalize().into(),
        })
    }

    /// `list` names the list and its order, such as `keys newest first`.
    ///
    /// # Errors
    /// A cursor that was not made for this tenant, list and filter.
    pub fn request(
        &self,
        key: &CursorKey,
        tenant: &TenantId,
        list: &str,
    ) -> Result<PageRequest, Error> {
        let after = match &self.cursor {
            None => None,
            Some(cursor) => Some(key.open(&self.binding(tenant, list), cursor).ok_or_else(
                || {
                    Error::invalid(
                        "cursor",
                        "must be the next_cursor of a page of this list with the same filter",
                    )
                },
            )?),
        };
        Ok(PageRequest {
            limit: self.limit,
            after,
        })
    }

    /// The page as it is answered; `tenant` and `list` as in [`PageQuery::request`].
    pub fn body<T, U>(
        &self,
        key: &CursorKey,
        tenant: &TenantId,
        list: &str,
        page: Page<T>,
        item: impl FnMut(T) -> U,
    ) -> PageBody<U> {
        PageBody {
            next_cursor: page
                .next
                .as_ref()
                .map(|position| key.seal(&self.binding(tenant, list), position)),
            items: page.items.into_iter().map(item).collect(),
        }
    }

    fn binding<'a>(&'a self, tenant: &'a TenantId, list: &'a str) -> [&'a [u8]; 3] {
        [
            tenant.as_str().as_bytes(),
            list.as_bytes(),
            &self.filter_digest,
        ]
    }
}

impl<F: DeserializeOwned> List<F> {
    fn parse(query: &str) -> Result<Self, Violation> {
        let mut params = Params::parse(query)?;
        let page = PageQuery::parse(&mut params)?;
        let filter = params.deserialize().map_err(|mut violation| {
            // The filter does not know that the page has parameters of its own.
            if let Some(known) = violation.detail.strip_prefix("is not a known parameter; ") {
                let names = known.strip_prefix("known here: ").unwrap_or_default();
                let comma = if names.is_empty() { "" } else { ", " };
                violation.detail =
                    format!("is not a known parameter; known here: {names}{comma}limit, cursor");
            }
            violation
        })?;
        Ok(Self { filter, page })
    }
}

impl<F: DeserializeOwned + Unpin + 'static> FromRequest for List<F> {
    type Error = Problem;
    type Future = Gated<Self>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        let parsed =
            Self::parse(req.query_string()).map_err(|violation| Problem::invalid(vec![violation]));
        Gate::of(req).read_query();
        Gated::new(req, parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::entropy::Entropy;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read, to see what is refused")]
    struct Filter {
        status: Option<String>,
    }

    fn key(byte: u8) -> CursorKey {
        CursorKey::new(&MasterKey::new([byte; 32]))
    }

    fn tenant(seed: u64) -> TenantId {
        TenantId::new(&Clock::System, &Entropy::seeded(seed))
    }

    fn list(query: &str) -> List<Filter> {
        List::parse(query).unwrap()
    }

    fn position() -> Position {
        Position {
            at: Timestamp::from_millis(1_800_000_000_123),
            id: "key_1".to_owned(),
        }
    }

    fn cursor(query: &str, tenant: &TenantId) -> String {
        let page = Page {
            items: vec![1],
            next: Some(position()),
        };
        let body = list(query)
            .page
            .body(&key(7), tenant, "keys", page, |item| item);
        body.next_cursor.unwrap()
    }

    fn open(query: &str, key: &CursorKey, tenant: &TenantId, name: &str) -> Option<Position> {
        let request = list(query).page.request(key, tenant, name);
        request.ok().and_then(|request| request.after)
    }

    #[test]
    fn a_cursor_leads_to_where_the_page_ended() {
        let tenant = tenant(1);
        let cursor = cursor("status=active&limit=2", &tenant);
        let query = format!("limit=5&cursor={cursor}&status=active");
        assert_eq!(open(&query, &key(7), &tenant, "keys"), Some(position()));
    }

    #[test]
    fn a_cursor_from_elsewhere_is_refused() {
        let ours = tenant(1);
        let cursor = cursor("status=active", &ours);
        let query = format!("status=active&cursor={cursor}");
        assert_eq!(
            open(&query, &key(7), &tenant(2), "keys"),
            None,
            "other tenant"
        );
        assert_eq!(
            open(&query, &key(7), &ours, "consumers"),
            None,
            "other list"
        );
        assert_eq!(open(&query, &key(8), &ours, "keys"), None, "other key");
        for other in ["", "status=revoked&", "status=activ&"] {
            let query = format!("{other}cursor={cursor}");
            assert_eq!(open(&query, &key(7), &ours, "keys"), None, "other filter");
        }
    }

    #[test]
    fn a_cursor_that_was_touched_is_refused() {
        let tenant = tenant(1);
        let cursor = cursor("", &tenant);
        let bytes = URL_SAFE_NO_PAD.decode(&cursor).unwrap();
        for (index, bit) in (0..bytes.len()).flat_map(|i| (0..8).map(move |bit| (i, bit))) {
            let mut touched = bytes.clone();
            touched[index] ^= 1 << bit;
            let query = format!("cursor={}", URL_SAFE_NO_PAD.encode(touched));
            assert_eq!(
                open(&query, &key(7), &tenant, "keys"),
                None,
                "bit {bit} of {index}"
            );
        }
        for forged in ["", "x", "eyJhdCI6MH0", "id;--", "AAAAAAAAAAAAAAAAAAAAAA"] {
            let query = format!("cursor={forged}");
            let error = list(&query)
                .page
                .request(&key(7), &tenant, "keys")
                .unwrap_err();
            assert!(matches!(error, Error::Invalid(ref v) if v[0].pointer == "cursor"));
        }
    }

    #[test]
    fn a_limit_is_between_1_and_200() {
        assert_eq!(list("").page.limit, 50);
        assert_eq!(list("limit=200").page.limit, 200);
        for limit in [
            "0",
            "-1",
            "201",
            "1000000000",
            "NaN",
            "1e3",
            "",
            "5&limit=6",
        ] {
            let violation = List::<Filter>::parse(&format!("limit={limit}")).unwrap_err();
            assert_eq!(violation.pointer, "limit");
        }
    }

    #[test]
    fn an_unknown_parameter_is_refused_with_the_known_ones() {
        let violation = List::<Filter>::parse("sort=id").unwrap_err();
        assert_eq!(violation.pointer, "sort");
        assert_eq!(
            violation.detail,
            "is not a known parameter; known here: status, limit, cursor"
        );
        let violation = List::<NoFilter>::parse("sort=id").unwrap_err();
        assert_eq!(
            violation.detail,
            "is not a known parameter; known here: limit, cursor"
        );
    }
}
