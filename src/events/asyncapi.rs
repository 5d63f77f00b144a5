//! The `AsyncAPI` 3.0 document of the sockets, written from the types in `message` and the codes in `close`.

use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use super::close::CloseCode;
use super::message::ClientFrame;
use super::message::EventFrame;
use super::message::PlainFrame;
use super::message::SUBPROTOCOL;
use super::message::ServerFrame;

/// The document.
pub fn document() -> Value {
    let mut schemas = Map::new();
    let mut messages = Map::new();
    let received = split::<ClientFrame>("Client", &mut schemas, &mut messages);
    let mut sent = split::<ServerFrame>("Server", &mut schemas, &mut messages);
    let plain = split::<PlainFrame>("Plain", &mut schemas, &mut messages);
    let event = adopt(schemars::schema_for!(EventFrame).to_value(), &mut schemas);
    schemas.insert("ServerEvent".to_owned(), event);
    messages.insert("ServerEvent".to_owned(), message("Event", "ServerEvent"));
    sent.push("ServerEvent".to_owned());
    let channel = |address: &str, about: &str, names: &[&Vec<String>]| {
        let all = names.iter().flat_map(|names| names.iter());
        let messages: Map<String, Value> =
            all.map(|name| (name.clone(), json!({ "$ref": format!("#/components/messages/{name}") }))).collect();
        json!({ "address": address, "description": about, "messages": messages, "bindings": { "ws": { "method": "GET" } } })
    };
    let operation = |action: &str, channel: &str, names: &[&Vec<String>], about: &str| {
        let all = names.iter().flat_map(|names| names.iter());
        let messages: Vec<Value> =
            all.map(|name| json!({ "$ref": format!("#/channels/{channel}/messages/{name}") })).collect();
        json!({ "action": action, "channel": { "$ref": format!("#/channels/{channel}") }, "summary": about, "messages": messages })
    };
    let all = [&received, &sent, &plain];
    let mut operations = Map::new();
    for name in ["queueUpdates", "ws", "apiWs"] {
        operations.insert(format!("{name}Receive"), operation("receive", name, &[&received], "What clients say."));
        operations.insert(
            format!("{name}Send"),
            operation("send", name, &[&sent, &plain], "What clients hear: Plain before Hello, Server after it."),
        );
    }
    let codes: Vec<Value> = CloseCode::ALL
        .iter()
        .map(|code| {
            let (reason, meaning) = (code.reason(), code.meaning().trim());
            json!({ "code": code.number(), "reason": reason, "reconnect": code.reconnect(), "meaning": meaning })
        })
        .collect();
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "pocketfleet sockets",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "What happens in pocketfleet, told as it happens. docs/sockets.md explains the protocol.",
            "license": { "name": "MIT" },
        },
        "defaultContentType": "application/json",
        "servers": { "local": { "host": "localhost:3000", "protocol": "ws" } },
        "channels": {
            "queueUpdates": channel("/queue_updates", "Listens to the caller's queue.", &all),
            "ws": channel("/ws", "Listens to what concerns the caller, and everybody.", &all),
            "apiWs": channel("/api/v1/ws", "The same as /ws.", &all),
        },
        "operations": operations,
        "components": { "messages": messages, "schemas": schemas },
        "x-subprotocol": SUBPROTOCOL,
        "x-close-codes": codes,
    })
}

fn message(name: &str, schema: &str) -> Value {
    json!({ "name": name, "payload": { "$ref": format!("#/components/schemas/{schema}") } })
}

/// One schema for each variant of an enum of frames; gives their names.
fn split<T: schemars::JsonSchema>(
    prefix: &str,
    schemas: &mut Map<String, Value>,
    messages: &mut Map<String, Value>,
) -> Vec<String> {
    let schema = adopt(schemars::schema_for!(T).to_value(), schemas);
    let mut names = Vec::new();
    for mut variant in schema["oneOf"].as_array().cloned().unwrap_or_default() {
        let kind = variant["properties"]["type"]["const"].as_str().unwrap_or_default().to_owned();
        let name = format!("{prefix}{kind}");
        if prefix == "Client"
            && let Some(properties) = variant["properties"].as_object_mut()
        {
            let about = "Any text or number; the answer carries it.";
            properties
                .insert("id".to_owned(), json!({ "type": ["string", "integer", "number"], "description": about }));
        }
        messages.insert(name.clone(), message(&kind, &name));
        schemas.insert(name.clone(), variant);
        names.push(name);
    }
    names
}

/// Moves a schema's definitions among all the others, and points its references there.
fn adopt(mut schema: Value, schemas: &mut Map<String, Value>) -> Value {
    point(&mut schema);
    if let Some(fields) = schema.as_object_mut() {
        fields.remove("$schema");
        if let Some(Value::Object(definitions)) = fields.remove("$defs") {
            schemas.extend(definitions);
        }
    }
    schema
}

fn point(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if name == "$ref" => *text = text.replace("#/$defs/", "#/components/schemas/"),
                    other => point(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(point),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str));
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 50, "{}", found.len());
        for reference in found {
            assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
        }
        for name in ["ClientHello", "ClientSubscribe", "ServerWelcome", "ServerEvent", "PlainQueueUpdate"] {
            assert!(document["components"]["messages"][name].is_object(), "{name}");
        }
    }
}
