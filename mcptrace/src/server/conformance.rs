//! Fixtures of the official conformance suite, behind a feature that no release has.
//!
//! The suite calls tools, prompts and resources of given names and wants given answers, so that it can test what a server of its own
//! tools would never do. They stand before the real server here, which answers everything else: transports, sessions, versions, errors,
//! lists and subscriptions that are tested are those that clients get. Answers are written as the JSON that goes over the wire.

#![expect(deprecated, reason = "logs and old subscriptions, which the suite tests in the versions that have them")]

mod content;
mod input;
mod tools;

use std::sync::Arc;

use rmcp::{
    ErrorData, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CompleteRequestParams, CompleteResult, CustomRequest, CustomResult,
        GetPromptRequestParams, GetPromptResponse, JsonObject, ListPromptsResult, ListResourceTemplatesResult,
        ListResourcesResult, ListToolsResult, PaginatedRequestParams, ReadResourceRequestParams, ReadResourceResponse,
        Reference, ServerConfig, SetLevelRequestParams, SubscribeRequestParams, SubscriptionFilter, Tool,
        UnsubscribeRequestParams,
    },
    service::{RequestContext, RoleServer, SubscriptionContext},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Hub, Server};
use crate::principal::Caller;

/// What all fixtures' resources begin with.
const SCHEME: &str = "test://";

/// The real server with the fixtures before it.
#[derive(Clone)]
pub(super) struct Fixtures(Server);

impl Fixtures {
    /// Answers a caller, as [`Server::new`] does.
    pub(super) fn new(hub: &Arc<Hub>, caller: Caller) -> Self {
        Self(Server::new(hub, caller))
    }
}

impl ServerHandler for Fixtures {
    fn get_info(&self) -> ServerConfig {
        let mut info = self.0.get_info();
        info.capabilities.logging = Some(JsonObject::new());
        info
    }

    async fn set_level(
        &self,
        _request: SetLevelRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        Ok(())
    }

    async fn list_tools(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let mut listed = self.0.list_tools(request, context).await?;
        listed.tools.extend(tools::list());
        Ok(listed)
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        self.0.get_tool(name).or_else(|| tools::list().into_iter().find(|tool| tool.name == name))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        if tools::has(&request.name) {
            tools::call(request, context).await
        } else {
            self.0.call_tool(request, context).await
        }
    }

    async fn list_resources(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let mut listed = self.0.list_resources(request, context).await?;
        listed.resources.extend(made::<Vec<_>>(content::resources())?);
        Ok(listed)
    }

    async fn list_resource_templates(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        let mut listed = self.0.list_resource_templates(request, context).await?;
        listed.resource_templates.extend(made::<Vec<_>>(content::templates())?);
        Ok(listed)
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        match content::resource(&request.uri) {
            Some(contents) => completed(contents).map(ReadResourceResponse::Complete),
            None => self.0.read_resource(request, context).await,
        }
    }

    async fn subscribe(
        &self,
        request: SubscribeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        if request.uri.starts_with(SCHEME) { Ok(()) } else { self.0.subscribe(request, context).await }
    }

    async fn unsubscribe(
        &self,
        request: UnsubscribeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.0.unsubscribe(request, context).await
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        self.0.accepted_subscription_filter(requested)
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        self.0.listen(context).await
    }

    async fn list_prompts(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        let mut listed = self.0.list_prompts(request, context).await?;
        listed.prompts.extend(made::<Vec<_>>(content::prompts())?);
        Ok(listed)
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        match content::prompt(&request)? {
            Some(response) => Ok(response),
            None => self.0.get_prompt(request, context).await,
        }
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        let is_fixture = matches!(&request.r#ref, Reference::Prompt(prompt) if prompt.name.starts_with("test_"));
        if is_fixture { Ok(CompleteResult::default()) } else { self.0.complete(request, context).await }
    }

    async fn on_custom_request(
        &self,
        request: CustomRequest,
        context: RequestContext<RoleServer>,
    ) -> Result<CustomResult, ErrorData> {
        self.0.on_custom_request(request, context).await
    }
}

/// A value of the protocol, out of how it is written on the wire.
fn made<T: DeserializeOwned>(written: Value) -> Result<T, ErrorData> {
    serde_json::from_value(written).map_err(|error| ErrorData::internal_error(format!("a bad fixture: {error}"), None))
}

/// The same for a result that is not one of several rounds, which says so.
fn completed<T: DeserializeOwned>(mut written: Value) -> Result<T, ErrorData> {
    written["resultType"] = "complete".into();
    made(written)
}
