//! A tool call in parts: `arguments` is JSON, and each file's part is called as the argument that
//! takes the file's name.

use std::{collections::HashSet, sync::Arc};

use axum::{body::Body, http::HeaderMap};
use bridge_model::{Caller, Tenant};
use bridge_protocol::RawJson;
use serde_json::{Map, Value};

use super::{Problem, body::Unread, multipart, upload};
use crate::{
    app::App,
    artifacts::{numbered, safe_name},
    budget::Taken,
    call::Incoming,
    catalog::Offer,
    config::Mode,
    session::Place,
};

/// A call with the files that it came with.
pub struct WithFiles {
    arguments: Map<String, Value>,
    /// With the names of their parts.
    files: Vec<(String, Incoming)>,
    /// What the arguments take of the memory for bodies.
    _held: Option<Taken>,
    /// The tool's arguments by name, and whether each takes a list.
    lists: Vec<(String, bool)>,
}

impl WithFiles {
    /// Reads the body; the files are beside the workspaces then.
    pub async fn read(
        app: &App,
        caller: &Caller,
        offer: &Offer,
        tool: &str,
        headers: &HeaderMap,
        body: &mut Body,
    ) -> Result<Self, Problem> {
        if offer.spec.mode == Mode::Shared {
            return Err(Problem::no_folder(offer.spec.name.as_str()));
        }
        let parts = multipart::read(app, caller, headers, body).await?;
        let mut arguments = Map::new();
        for (name, text) in parts.texts {
            if name != "arguments" {
                let why = format!("the part '{name}' is no file: all words go into 'arguments'");
                return Err(Problem::bad_part(&why));
            }
            let parsing = app
                .bodies
                .of(Tenant::of(caller))
                .parse(text.as_bytes())
                .await;
            let _parsing = parsing.map_err(Unread::from)?;
            let read = serde_json::from_str(&text);
            arguments = read.map_err(|error| {
                Problem::bad_part(&format!("the part 'arguments' is no JSON object: {error}"))
            })?;
        }
        let schema = offer.tool(tool).map(|known| known.tool.input_schema());
        let properties = schema.and_then(|schema| schema["properties"].as_object());
        let properties = properties.into_iter().flatten();
        let lists = properties.map(|(name, schema)| (name.clone(), schema["type"] == "array"));
        Ok(Self {
            arguments,
            files: parts.files,
            _held: parts.held,
            lists: lists.collect(),
        })
    }

    /// The names that the files would get in an empty folder.
    pub fn expected(&self) -> Vec<String> {
        let mut taken = HashSet::new();
        let files = self.files.iter();
        let names = files.map(|(_, file)| {
            let free = numbered(&safe_name(&file.name)).find(|name| taken.insert(name.clone()));
            free.unwrap_or_default()
        });
        names.collect()
    }

    /// The arguments with the files' names in them. A part that is called as no argument brings its
    /// file and nothing else.
    pub fn arguments(&self, names: &[String]) -> Result<RawJson, Problem> {
        let parts = self.files.iter().map(|(part, _)| part);
        self.filled(parts, names)
    }

    fn filled<'p>(
        &self,
        parts: impl Iterator<Item = &'p String>,
        names: &[String],
    ) -> Result<RawJson, Problem> {
        let mut arguments = self.arguments.clone();
        for (part, name) in parts.zip(names) {
            let Some((_, list)) = self.lists.iter().find(|(argument, _)| argument == part) else {
                continue;
            };
            let name = Value::from(name.as_str());
            match arguments.get_mut(part) {
                Some(Value::Array(names)) => names.push(name),
                Some(_) => {
                    let why = format!("the argument '{part}' is given more than once");
                    return Err(Problem::bad_part(&why));
                }
                None if *list => {
                    arguments.insert(part.clone(), vec![name].into());
                }
                None => {
                    arguments.insert(part.clone(), name);
                }
            }
        }
        RawJson::from_value(&arguments).map_err(|error| Problem::bad_json(&error))
    }

    /// Puts the files where the call will find them. For a call that gets a folder of its own they
    /// are handed on to it.
    pub async fn bring(
        mut self,
        app: &Arc<App>,
        caller: &Caller,
        offer: &Offer,
        place: &Place,
    ) -> Result<(RawJson, Vec<Incoming>), Problem> {
        let expected = self.expected();
        if offer.spec.mode == Mode::Stateless {
            let arguments = self.arguments(&expected)?;
            let files = self.files.into_iter().map(|(_, file)| file);
            return Ok((arguments, files.collect()));
        }
        let (parts, files): (Vec<_>, Vec<_>) = std::mem::take(&mut self.files).into_iter().unzip();
        let taken = upload::take_in(app, caller, place, files).await?;
        let names: Vec<_> = taken.into_iter().map(|file| file.name).collect();
        Ok((self.filled(parts.iter(), &names)?, Vec::new()))
    }
}
