//! From tracing's spans and events to lines.

use tracing::{Event, Subscriber, span};
use tracing_subscriber::{
    layer::{Context, Layer},
    registry::LookupSpan,
};

use super::{
    line::{Fields, Format, Line},
    queue::{Queue, Worth},
};
use crate::telemetry::AUDIT;

/// One place where lines go.
#[derive(Debug)]
pub struct Sink {
    pub queue: Queue,
    pub format: Format,
}

/// Writes each event to all sinks.
#[derive(Debug)]
pub struct LogLayer {
    sinks: Vec<Sink>,
}

impl LogLayer {
    pub fn new(sinks: Vec<Sink>) -> Self {
        Self { sinks }
    }
}

impl<S> Layer<S> for LogLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(
        &self,
        attributes: &span::Attributes<'_>,
        id: &span::Id,
        context: Context<'_, S>,
    ) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::of_span(attributes.metadata().fields().len());
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            fields.record_again(|fields| values.record(fields));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut line = Line::of(event);
        // From the inside out: the nearest span knows best.
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(fields) = span.extensions().get::<Fields>() {
                line.add(fields);
            }
        }
        let audit = event.metadata().target() == AUDIT;
        let worth = if audit { Worth::Audit } else { Worth::Ordinary };
        for sink in &self.sinks {
            sink.queue.push(line.render(sink.format), worth);
        }
    }
}
