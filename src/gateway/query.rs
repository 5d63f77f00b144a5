//! The one query parameter that is ours to read and to replace: `token`, which carries a file token.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// The first `token` of a query, decoded.
pub(crate) fn token_in(query: Option<&str>) -> Option<Cow<'_, str>> {
    let value = query?.split('&').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        is_token(name).then_some(value)
    })?;
    percent_decode_str(value).decode_utf8().ok().filter(|token| !token.is_empty())
}

/// The query with every `token` taken out, and `token` put in.
pub(crate) fn with_token(query: Option<&str>, token: Option<&str>) -> Option<String> {
    let kept = query.unwrap_or_default().split('&').filter(|pair| {
        let name = pair.split_once('=').map_or(*pair, |(name, _)| name);
        !pair.is_empty() && !is_token(name)
    });
    let mut text = kept.collect::<Vec<_>>().join("&");
    if let Some(token) = token {
        if !text.is_empty() {
            text.push('&');
        }
        // A token is base64url and dots.
        text.push_str("token=");
        text.push_str(token);
    }
    (!text.is_empty()).then_some(text)
}

fn is_token(name: &str) -> bool {
    name == "token" || percent_decode_str(name).eq("token".bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found_and_replaced_however_they_are_spelled() {
        assert_eq!(token_in(Some("thumb=1x1&token=a.b")).unwrap(), "a.b");
        assert_eq!(token_in(Some("%74oken=a%2Eb")).unwrap(), "a.b");
        assert_eq!(token_in(Some("token=")), None);
        assert_eq!(token_in(Some("tokens=a")), None);
        assert_eq!(token_in(None), None);
        assert_eq!(with_token(Some("token=a&thumb=1&tok%65n=b"), Some("c")).unwrap(), "thumb=1&token=c");
        assert_eq!(with_token(Some("token=a"), None), None);
        assert_eq!(with_token(None, Some("c")).unwrap(), "token=c");
        assert_eq!(with_token(Some("token&a"), None).unwrap(), "a");
    }
}
