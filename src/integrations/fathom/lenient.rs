//! Reading JSON that may differ from its document: a field that cannot be understood is absent, not an error.

use serde::Deserialize;
use serde::Deserializer;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A value if it is what it should be.
pub(super) fn option<'de, D: Deserializer<'de>, T: Model>(from: D) -> Result<Option<T>, D::Error> {
    Ok(understood(Value::deserialize(from)?))
}

/// The elements that are what they should be; null, or anything but a list, is an empty one.
pub(super) fn list<'de, D: Deserializer<'de>, T: Model>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(optional_list(from)?.unwrap_or_default())
}

/// The same where "not asked for" differs from "none".
pub(super) fn optional_list<'de, D: Deserializer<'de>, T: Model>(from: D) -> Result<Option<Vec<T>>, D::Error> {
    Ok(match Value::deserialize(from)? {
        Value::Array(values) => Some(values.into_iter().filter_map(understood).collect()),
        Value::String(text) if !text.is_empty() => understood(Value::String(text)).map(|one| vec![one]),
        _ => None,
    })
}

/// A text; numbers are written out.
pub(super) fn text<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(match Value::deserialize(from)? {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    })
}

/// True only when it says so.
pub(super) fn flag<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    Ok(match Value::deserialize(from)? {
        Value::Bool(flag) => flag,
        Value::String(text) => text == "true",
        _ => false,
    })
}

/// An instant by RFC 3339.
pub(super) fn instant<'de, D: Deserializer<'de>>(from: D) -> Result<Option<OffsetDateTime>, D::Error> {
    Ok(match Value::deserialize(from)? {
        Value::String(text) => OffsetDateTime::parse(&text, &Rfc3339).ok(),
        _ => None,
    })
}

/// A positive whole number, also when it is written as text. Required.
pub(super) fn id<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let value = Value::deserialize(from)?;
    let id = value.as_u64().or_else(|| value.as_str()?.parse().ok());
    id.ok_or_else(|| serde::de::Error::custom("an id that is not a whole number"))
}

/// A text, or a whole number written out. Required.
pub(super) fn token<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    text(from)?.filter(|text| !text.is_empty()).ok_or_else(|| serde::de::Error::custom("an id that is empty"))
}

/// A type of the model, which older or odd payloads may write as a bare text.
pub trait Model: DeserializeOwned {
    /// The field that a bare text stands for.
    const TEXT: Option<&'static str> = None;
}

/// A value if it is what it should be.
pub(super) fn understood<T: Model>(value: Value) -> Option<T> {
    let value = match (value, T::TEXT) {
        (Value::Null, _) => return None,
        (Value::String(text), Some(field)) => json!({ field: text }),
        (value, _) => value,
    };
    serde_json::from_value(value).ok()
}
