//! The child behind every contender: an MCP server so quick that what is measured is in front of
//! it. Its tools: `echo` a text, a `big` text of so many bytes, and `write` a file of so many.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, BufWriter, Write as _},
};

use serde::Deserialize;
use serde_json::{json, value::RawValue};

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    method: Option<String>,
    params: Option<Params>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Params {
    name: Option<String>,
    arguments: Option<Arguments>,
    protocol_version: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Arguments {
    text: String,
    name: String,
    bytes: usize,
}

fn main() -> io::Result<()> {
    let mut input = BufReader::with_capacity(1 << 16, io::stdin().lock());
    let mut output = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let mut line = Vec::new();
    while input.read_until(b'\n', &mut line)? > 0 {
        if let Ok(message) = serde_json::from_slice::<Message>(&line)
            && let Some(id) = message.id
        {
            write!(output, r#"{{"jsonrpc":"2.0","id":{id},"#)?;
            match answer(&message)? {
                Some(result) => writeln!(output, r#""result":{result}}}"#)?,
                None => writeln!(output, r#""error":{{"code":-32601,"message":"no"}}}}"#)?,
            }
        }
        line.clear();
        // What waits already is answered with one write.
        if input.buffer().is_empty() {
            output.flush()?;
        }
    }
    Ok(())
}

fn answer(message: &Message<'_>) -> io::Result<Option<String>> {
    let params = message.params.as_ref();
    let result = match message.method.as_deref() {
        Some("initialize") => {
            let version = params.and_then(|params| params.protocol_version.clone());
            let info = json!({"name": "echo", "version": "1"});
            json!({"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info})
                .to_string()
        }
        Some("ping") => "{}".to_owned(),
        Some("tools/list") => tools(),
        Some("tools/call") => match params {
            Some(Params {
                name: Some(tool),
                arguments: Some(arguments),
                ..
            }) => text(&call(tool, arguments)?)?,
            _ => return Ok(None),
        },
        _ => return Ok(None),
    };
    Ok(Some(result))
}

fn call(tool: &str, arguments: &Arguments) -> io::Result<String> {
    Ok(match tool {
        "big" => "x".repeat(arguments.bytes),
        "write" => {
            let mut file = File::create(&arguments.name)?;
            // No holes: what reads it reads bytes.
            let block: Vec<u8> = (0..=u8::MAX).cycle().take(1 << 20).collect();
            let mut left = arguments.bytes;
            while left > 0 {
                let part = left.min(block.len());
                file.write_all(&block[..part])?;
                left -= part;
            }
            "written".to_owned()
        }
        _ => arguments.text.clone(),
    })
}

fn text(text: &str) -> io::Result<String> {
    let text = serde_json::to_string(text)?;
    Ok(format!(
        r#"{{"content":[{{"type":"text","text":{text}}}]}}"#
    ))
}

fn tools() -> String {
    let tool = |name: &str, properties: serde_json::Value| {
        json!({
            "name": name, "description": name,
            "inputSchema": {"type": "object", "properties": properties},
        })
    };
    let (string, integer) = (json!({"type": "string"}), json!({"type": "integer"}));
    json!({"tools": [
        tool("echo", json!({"text": string})),
        tool("big", json!({"bytes": integer})),
        tool("write", json!({"name": string, "bytes": integer})),
    ]})
    .to_string()
}
