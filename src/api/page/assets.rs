//! The page's style and scripts, compiled in. Browsers keep them and ask each time whether they are still the ones.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::HeaderMap;
use axum::http::HeaderValue;
use axum::http::StatusCode;
use axum::http::header;
use axum::response::IntoResponse;
use axum::response::Response;
use sha2::Digest;
use sha2::Sha256;

use crate::api::page::layout;
use crate::error::Code;
use crate::error::Problem;

const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

/// Name, type and text of each.
const ASSETS: [(&str, &str, &str); 5] = [
    ("app.css", STYLE, include_str!("../../../assets/app/app.css")),
    ("app.js", SCRIPT, include_str!("../../../assets/app/app.js")),
    ("forms.js", SCRIPT, include_str!("../../../assets/app/forms.js")),
    ("live.js", SCRIPT, include_str!("../../../assets/app/live.js")),
    ("icon.svg", "image/svg+xml", include_str!("../../../assets/app/icon.svg")),
];

/// The tags, in the order of the assets.
static TAGS: LazyLock<Vec<HeaderValue>> = LazyLock::new(|| ASSETS.iter().map(|(_, _, text)| tag(text)).collect());

fn tag(text: &str) -> HeaderValue {
    let digest = Sha256::digest(text);
    let hex = digest.iter().take(12).fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    HeaderValue::try_from(format!("\"{hex}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}

/// One of them.
pub(super) async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Response {
    let Some(at) = ASSETS.iter().position(|(known, ..)| *known == name) else {
        return layout::failure(&Problem::new(Code::NotFound));
    };
    let (Some((_, content_type, text)), Some(tag)) = (ASSETS.get(at), TAGS.get(at)) else {
        return layout::failure(&Problem::new(Code::NotFound));
    };
    let common = [(header::ETAG, tag.clone()), (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))];
    if headers.get(header::IF_NONE_MATCH).is_some_and(|known| is_among(known, tag)) {
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    (common, [(header::CONTENT_TYPE, *content_type)], *text).into_response()
}

/// Whether a list of tags has this one; a compressing front end may have marked it weak.
fn is_among(list: &HeaderValue, tag: &HeaderValue) -> bool {
    let (Ok(list), Ok(tag)) = (list.to_str(), tag.to_str()) else { return false };
    list.split(',').any(|one| one.trim().trim_start_matches("W/") == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_asset_that_is_known_is_not_sent_again() {
        let get = |name: &str, known: Option<HeaderValue>| {
            let headers: HeaderMap = known.map(|tag| (header::IF_NONE_MATCH, tag)).into_iter().collect();
            asset(Path(name.to_owned()), headers)
        };
        let first = get("app.css", None).await;
        assert_eq!(
            (first.status().as_u16(), &first.headers()["content-type"]),
            (200, &HeaderValue::from_static(STYLE))
        );
        let tag = first.headers()["etag"].clone();
        assert_eq!(get("app.css", Some(tag.clone())).await.status(), 304);
        assert_eq!(get("app.js", Some(tag)).await.status(), 200);
        assert_eq!(get("absent.js", None).await.status(), 404);
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere_and_nothing_writes_markup_of_its_own() {
        for (name, _, text) in ASSETS {
            for outside in ["http://", "https://", "innerHTML", "outerHTML", "document.write", "eval(", "@import"] {
                // A picture names its vocabulary.
                let text = text.replace("http://www.w3.org/2000/svg", "");
                assert!(!text.contains(outside), "{outside} in {name}");
            }
        }
    }
}
