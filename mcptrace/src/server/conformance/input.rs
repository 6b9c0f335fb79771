//! Fixtures that need something of the client before they can answer (SEP-2322): they answer with requests, and the client calls again
//! with the responses.

use std::sync::LazyLock;

use ring::{hmac, rand::SystemRandom};
use rmcp::{
    ErrorData,
    model::{
        CallToolRequestParams, CallToolResponse, ClientCapabilities, GetPromptRequestParams, GetPromptResponse,
        InputRequiredResult, InputResponses,
    },
};
use serde_json::{Map, Value, json};

use super::{completed, content, made};

/// The prompt that asks before it answers.
pub(super) const PROMPT: &str = "test_input_required_result_prompt";

/// What a tool asks for, in which rounds, and whether it hands out a state that must come back untouched.
struct Asking {
    rounds: &'static [&'static [Question]],
    has_state: bool,
}

/// A key, and what is asked under it.
type Question = (&'static str, Ask);

#[derive(Clone, Copy)]
enum Ask {
    /// A form with one field: what it says, the field, and the field's type.
    Form(&'static str, &'static str, &'static str),
    /// A message by the client's model.
    Sample(&'static str),
    /// The client's roots.
    Roots,
}

const NAME: Question = ("user_name", Ask::Form("What is your name?", "name", "string"));
const GREETING: Question = ("greeting", Ask::Sample("Write a greeting"));
const ROOTS: Question = ("client_roots", Ask::Roots);
const CONFIRM: Question = ("confirm", Ask::Form("Please confirm", "ok", "boolean"));

/// How a tool asks; `None` if it does not.
fn asking(name: &str) -> Option<Asking> {
    let (rounds, has_state): (&[&[Question]], bool) = match name {
        "test_input_required_result_elicitation" | "test_streaming_elicitation" | PROMPT => (&[&[NAME]], false),
        "test_input_required_result_sampling" => {
            (&[&[("capital_question", Ask::Sample("What is the capital of France?"))]], false)
        }
        "test_input_required_result_list_roots" => (&[&[ROOTS]], false),
        "test_input_required_result_request_state" | "test_input_required_result_tampered_state" => {
            (&[&[CONFIRM]], true)
        }
        "test_input_required_result_multiple_inputs" => (&[&[NAME, GREETING, ROOTS]], true),
        "test_input_required_result_multi_round" => {
            (&[&[("step1", NAME.1)], &[("step2", Ask::Form("Which colour?", "color", "string"))]], true)
        }
        "test_input_required_result_capabilities" => (&[&[NAME, GREETING, ROOTS]], false),
        _ => return None,
    };
    Some(Asking { rounds, has_state })
}

/// Calls a tool that asks; `None` if it is none.
pub(super) fn call(
    request: &CallToolRequestParams,
    client: &ClientCapabilities,
) -> Option<Result<CallToolResponse, ErrorData>> {
    let asking = asking(&request.name)?;
    let answered = asking.next(request.input_responses.as_ref(), request.request_state.as_deref(), client);
    Some(answered.and_then(|next| {
        if let Some(requests) = next {
            Ok(requests.into())
        } else {
            let said = format!("state-ok, and these were answered: {}", told(request.input_responses.as_ref()));
            completed(json!({ "content": [content::text(&said)] })).map(CallToolResponse::Complete)
        }
    }))
}

/// The prompt that asks.
pub(super) fn prompt(request: &GetPromptRequestParams) -> Result<GetPromptResponse, ErrorData> {
    const ASKING: Asking = Asking { rounds: &[&[NAME]], has_state: false };
    let responses = request.input_responses.as_ref();
    match ASKING.next(responses, None, &everything())? {
        Some(requests) => Ok(requests.into()),
        None => content::messages(json!([content::text(&format!("A prompt for {}", told(responses)))])),
    }
}

/// A client that can answer whatever is asked.
fn everything() -> ClientCapabilities {
    serde_json::from_value(json!({ "elicitation": {}, "sampling": {}, "roots": {} })).unwrap_or_default()
}

impl Asking {
    /// What is to be asked next; `None` when all has been answered.
    fn next(
        &self,
        responses: Option<&InputResponses>,
        state: Option<&str>,
        client: &ClientCapabilities,
    ) -> Result<Option<InputRequiredResult>, ErrorData> {
        let asked = state.map_or(Ok(0), opened)?;
        let open = |round: usize| -> Vec<Question> {
            let all = self.rounds.get(round).copied().unwrap_or_default();
            all.iter().filter(|(_, ask)| ask.is_for(client)).copied().collect()
        };
        let is_answered = open(asked).iter().all(|(key, _)| {
            // Of another type it is no response, and is asked for again.
            responses.and_then(|responses| responses.get(*key)).is_some_and(Value::is_object)
        });
        let round = if is_answered && (state.is_some() || !self.has_state) { asked + 1 } else { asked };
        if round >= self.rounds.len() {
            return Ok(None);
        }
        let requests: Map<_, _> = open(round).iter().map(|(key, ask)| ((*key).to_owned(), ask.request())).collect();
        let state = self.has_state.then(|| sealed(round));
        Ok(Some(InputRequiredResult::new(Some(made(Value::Object(requests))?), state)))
    }
}

impl Ask {
    fn is_for(self, client: &ClientCapabilities) -> bool {
        match self {
            Self::Form(..) => client.elicitation.is_some(),
            Self::Sample(_) => client.sampling.is_some(),
            Self::Roots => client.roots.is_some(),
        }
    }

    /// As it is written on the wire.
    fn request(self) -> Value {
        match self {
            Self::Form(message, field, kind) => {
                let schema =
                    json!({ "type": "object", "properties": { field: { "type": kind } }, "required": [field] });
                form(message, &schema)
            }
            Self::Sample(question) => sample(question),
            Self::Roots => json!({ "method": "roots/list" }),
        }
    }
}

/// A request for a form to be filled in.
pub(super) fn form(message: &str, schema: &Value) -> Value {
    let params = json!({ "mode": "form", "message": message, "requestedSchema": schema });
    json!({ "method": "elicitation/create", "params": params })
}

/// A request for a message of the client's model.
pub(super) fn sample(question: &str) -> Value {
    let message = json!({ "role": "user", "content": content::text(question) });
    json!({ "method": "sampling/createMessage", "params": { "messages": [message], "maxTokens": 100 } })
}

fn told(responses: Option<&InputResponses>) -> String {
    responses.map(|responses| json!(responses).to_string()).unwrap_or_default()
}

static KEY: LazyLock<Option<hmac::Key>> =
    LazyLock::new(|| hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok());

/// The round that was asked last, with a mark that only this process can make.
fn sealed(round: usize) -> String {
    let mark = KEY.as_ref().map(|key| hmac::sign(key, &round.to_le_bytes()));
    let hex = mark.iter().flat_map(AsRef::as_ref).fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    format!("{round}.{hex}")
}

/// The round in a state, if it is as [`sealed`] has made it.
fn opened(state: &str) -> Result<usize, ErrorData> {
    let round = state.split_once('.').and_then(|(round, _)| round.parse().ok());
    let intact = round.filter(|round| sealed(*round) == state);
    intact.ok_or_else(|| ErrorData::invalid_params("requestState is not what this server has handed out", None))
}
