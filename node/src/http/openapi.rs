//! The OpenAPI document of what terminals send and get.

use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityScheme};
use utoipa::{Modify, OpenApi};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Feiqian terminal API",
        version = "1",
        description = "How terminals (POS, door readers, meters, kiosks) talk to the node of their building. HTTPS with the \
                       certificate of the institution's own CA, HTTP/1.1 keep-alive, JSON.\n\n\
                       Each request carries `x-feiqian-terminal` and `x-feiqian-mac`: hexadecimal HMAC-SHA-256 with the \
                       terminal's key over `\"feiqian-request-1\\n\" + method + \"\\n\" + path + \"\\n\" + body`. Each answer to a \
                       known terminal carries `x-feiqian-mac` over `\"feiqian-answer-1\\n\" + the request's MAC (64 lower-case digits) + \
                       \"\\n\" + status code + \"\\n\" + body`, and must be checked: anybody on the network could say \
                       \"approved\". `feiqian-node terminal-key` shows the key.",
    ),
    paths(
        paths::tap, paths::reversal, paths::balance, paths::setting, paths::pin_change, paths::health, paths::purse_check,
        paths::purse_purchase, paths::purse_load, paths::purse_loaded, paths::purse_evidence,
        paths::purse_open,
    ),
    modifiers(&Headers),
)]
struct TerminalApi;

/// The two headers of a request.
struct Headers;

impl Modify for Headers {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_default();
        for (name, header) in [("terminal", super::TERMINAL_HEADER), ("mac", super::MAC_HEADER)] {
            let scheme = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new(header)));
            components.add_security_scheme(name, scheme);
        }
    }
}

/// One function per path, for the macro to read; the handlers share their way in and are elsewhere.
#[expect(dead_code, reason = "only their attributes are read")]
mod paths {
    use crate::http::api::{
        BalanceAnswer, BalanceBody, ErrorAnswer, HealthAnswer, PinBody, ReversalBody, SettingAnswer,
        SettingBody, TapAnswer, TapBody,
    };
    use crate::http::purse::{
        PurseCheckAnswer, PurseCheckBody, PurseEvidenceBody, PurseLoadAnswer, PurseLoadBody, PurseLoadedBody,
        PurseOpenBody, PursePurchaseBody, PurseRecordedAnswer, PurseSettledAnswer,
    };

    #[utoipa::path(
        post, path = "/v1/taps", operation_id = "tap", tag = "terminal", security(("terminal" = [], "mac" = [])),
        summary = "Decides a purchase or a passage",
        request_body = TapBody,
        responses(
            (status = 200, description = "Approved, declined or pending; authenticated by `x-feiqian-mac`.", body = TapAnswer),
            (status = 400, description = "`malformed` (the message names the field).", body = ErrorAnswer),
            (status = 401, description = "`unauthenticated`: terminal or MAC is not valid.", body = ErrorAnswer),
            (status = 403, description = "`unknown_terminal`, `no_merchant`.", body = ErrorAnswer),
            (status = 409, description = "`key_reused`: epoch and sequence were used for another request.", body = ErrorAnswer),
            (status = 413, description = "The body is too long.", body = ErrorAnswer),
            (status = 422, description = "`amount`, `quantity`: out of range. `pin`: not six digits.", body = ErrorAnswer),
            (status = 503, description = "`busy`, `unavailable`: ask again with the same epoch and sequence.", body = ErrorAnswer),
        )
    )]
    const fn tap() {}

    #[utoipa::path(
        post, path = "/v1/reversals", operation_id = "reverse", tag = "terminal", security(("terminal" = [], "mac" = [])),
        summary = "Undoes a purchase, wholly or partly",
        request_body = ReversalBody,
        responses(
            (status = 200, description = "Approved, declined or pending; authenticated by `x-feiqian-mac`.", body = TapAnswer),
            (status = 400, description = "`malformed` (the message names the field).", body = ErrorAnswer),
            (status = 401, description = "`unauthenticated`: terminal or MAC is not valid.", body = ErrorAnswer),
            (status = 403, description = "`unknown_terminal`, `other_terminal`.", body = ErrorAnswer),
            (status = 409, description = "`key_reused`: epoch and sequence were used for another request.", body = ErrorAnswer),
            (status = 413, description = "The body is too long.", body = ErrorAnswer),
            (status = 422, description = "`amount`, `reversal_too_large`, `nothing_to_reverse`.", body = ErrorAnswer),
            (status = 503, description = "`busy`, `unavailable`: ask again with the same epoch and sequence.", body = ErrorAnswer),
        )
    )]
    const fn reversal() {}

    #[utoipa::path(
        post, path = "/v1/balance", operation_id = "balance", tag = "terminal", security(("terminal" = [], "mac" = [])),
        summary = "Shows what is on a card, as far as this building knows",
        request_body = BalanceBody,
        responses(
            (status = 200, description = "Shown or declined; authenticated by `x-feiqian-mac`.", body = BalanceAnswer),
            (status = 400, description = "`malformed` (the message names the field).", body = ErrorAnswer),
            (status = 401, description = "`unauthenticated`: terminal or MAC is not valid.", body = ErrorAnswer),
            (status = 413, description = "The body is too long.", body = ErrorAnswer),
            (status = 503, description = "`busy`, `unavailable`: ask again.", body = ErrorAnswer),
        )
    )]
    const fn balance() {}

    #[utoipa::path(
        post, path = "/v1/settings", operation_id = "setting", tag = "terminal", security(("terminal" = [], "mac" = [])),
        summary = "Reports a loss, lowers limits, freezes an account or withdraws a card",
        request_body = SettingBody,
        responses(
            (status = 200, description = "It acts in this building; authenticated by `x-feiqian-mac`.", body = SettingAnswer),
            (status = 400, description = "`malformed` (the message names the field).", body = ErrorAnswer),
            (status = 401, description = "`unauthenticated`: terminal or MAC is not valid.", body = ErrorAnswer),
            (status = 403, description = "`unknown_terminal`; `role`: not in a building of this role.", body = ErrorAnswer),
            (status = 404, description = "`unknown_card`.", body = ErrorAnswer),
            (status = 409, description = "`closed`: the account is closed.", body = ErrorAnswer),
            (status = 413, description = "The body is too long.", body = ErrorAnswer),
            (status = 422, description = "`limit_raised`, `limit_out_of_range`, `no_room`.", body = ErrorAnswer),
            (status = 503, description = "`busy`, `too_many`, `unavailable`: ask again.", body = ErrorAnswer),
        )
    )]
    const fn setting() {}

    #[utoipa::path(
        post, path = "/v1/pin", operation_id = "pin_change", tag = "terminal", security(("terminal" = [], "mac" = [])),
        summary = "Changes the payment PIN for a holder who shows the one that there is",
        request_body = PinBody,
        responses(
            (status = 200, description = "It waits for the centre; authenticated by `x-feiqian-mac`.", body = SettingAnswer),
            (status = 400, description = "`malformed` (the message names the field).", body = ErrorAnswer),
            (status = 401, description = "`unauthenticated`: terminal or MAC is not valid.", body = ErrorAnswer),
            (status = 403, description = "`unknown_terminal`; `role`: not in a building of this role.", body = ErrorAnswer),
            (status = 404, description = "`unknown_card`.", body = ErrorAnswer),
            (status = 409, description = "`closed`: the account is closed.", body = ErrorAnswer),
            (status = 413, description = "The body is too long.", body = ErrorAnswer),
            (status = 422, description = "`pin`: not six digits, or too easy to guess; `wrong_pin` (it counts as a try), `pin_locked`, `pin_changed`, `pin_waits`, `pin_unconfirmed`, `pin_no_key`, `no_room`.", body = ErrorAnswer),
            (status = 503, description = "`busy`, `unavailable`: ask again.", body = ErrorAnswer),
        )
    )]
    const fn pin_change() {}

    #[utoipa::path(
        post, path = "/v1/purse/check", operation_id = "purse_check", tag = "purse",
        security(("terminal" = [], "mac" = [])),
        summary = "Says whether anything is known against a card, before it is debited",
        request_body = PurseCheckBody,
        responses(
            (status = 200, description = "Usable or declined; authenticated by `x-feiqian-mac`.", body = PurseCheckAnswer),
            (status = 400, description = "`malformed` (the message names the field).", body = ErrorAnswer),
            (status = 401, description = "`unauthenticated`: terminal or MAC is not valid.", body = ErrorAnswer),
            (status = 403, description = "`unknown_terminal`.", body = ErrorAnswer),
            (status = 503, description = "`busy`, `unavailable`: ask again.", body = ErrorAnswer),
        )
    )]
    const fn purse_check() {}

    #[utoipa::path(
        post, path = "/v1/purse/purchases", operation_id = "purse_purchase", tag = "purse",
        security(("terminal" = [], "mac" = [])),
        summary = "Reports a purchase that a card has made",
        request_body = PursePurchaseBody,
        responses(
            (status = 200, description = "It is kept; authenticated by `x-feiqian-mac`.", body = PurseRecordedAnswer),
            (status = 400, description = "`malformed` (the message names the field).", body = ErrorAnswer),
            (status = 401, description = "`unauthenticated`: terminal or MAC is not valid.", body = ErrorAnswer),
            (status = 403, description = "`unknown_terminal`, `no_merchant`; `role`: not in a building of this role.", body = ErrorAnswer),
            (status = 409, description = "`key_reused`: epoch and sequence reported something else.", body = ErrorAnswer),
            (status = 422, description = "`amount`: out of range.", body = ErrorAnswer),
            (status = 503, description = "`busy`, `unavailable`: report it again.", body = ErrorAnswer),
        )
    )]
    const fn purse_purchase() {}

    #[utoipa::path(
        post, path = "/v1/purse/loads", operation_id = "purse_load", tag = "purse",
        security(("terminal" = [], "mac" = [])),
        summary = "Asks the centre to let money of the account onto a card",
        request_body = PurseLoadBody,
        responses(
            (status = 200, description = "Authorized, unresolved or declined; authenticated by `x-feiqian-mac`.", body = PurseLoadAnswer),
            (status = 400, description = "`malformed` (the message names the field).", body = ErrorAnswer),
            (status = 401, description = "`unauthenticated`: terminal or MAC is not valid.", body = ErrorAnswer),
            (status = 403, description = "`unknown_terminal`.", body = ErrorAnswer),
            (status = 503, description = "`unreachable`: the centre cannot be asked; `busy`, `unavailable`.", body = ErrorAnswer),
        )
    )]
    const fn purse_load() {}

    #[utoipa::path(
        post, path = "/v1/purse/loads/finish", operation_id = "purse_loaded", tag = "purse",
        security(("terminal" = [], "mac" = [])),
        summary = "Hands in the word of a card that it has taken a load",
        request_body = PurseLoadedBody,
        responses(
            (status = 200, description = "It is kept; authenticated by `x-feiqian-mac`.", body = PurseRecordedAnswer),
            (status = 400, description = "`malformed` (the message names the field).", body = ErrorAnswer),
            (status = 401, description = "`unauthenticated`: terminal or MAC is not valid.", body = ErrorAnswer),
            (status = 403, description = "`unknown_terminal`; `role`: not in a building of this role.", body = ErrorAnswer),
            (status = 503, description = "`busy`, `unavailable`: hand it in again.", body = ErrorAnswer),
        )
    )]
    const fn purse_loaded() {}

    #[utoipa::path(
        post, path = "/v1/purse/loads/evidence", operation_id = "purse_evidence", tag = "purse",
        security(("terminal" = [], "mac" = [])),
        summary = "Hands the centre what a card said when it was probed about an older load",
        request_body = PurseEvidenceBody,
        responses(
            (status = 200, description = "What became of it, or declined; authenticated by `x-feiqian-mac`.", body = PurseSettledAnswer),
            (status = 400, description = "`malformed` (the message names the field).", body = ErrorAnswer),
            (status = 401, description = "`unauthenticated`: terminal or MAC is not valid.", body = ErrorAnswer),
            (status = 403, description = "`unknown_terminal`.", body = ErrorAnswer),
            (status = 503, description = "`unreachable`: the centre cannot be asked; `busy`, `unavailable`.", body = ErrorAnswer),
        )
    )]
    const fn purse_evidence() {}

    #[utoipa::path(
        post, path = "/v1/purse/loads/open", operation_id = "purse_open", tag = "purse",
        security(("terminal" = [], "mac" = [])),
        summary = "Asks for the load of a card of which nobody knows what became",
        request_body = PurseOpenBody,
        responses(
            (status = 200, description = "Unresolved, `nothing`, or declined; authenticated by `x-feiqian-mac`.", body = PurseLoadAnswer),
            (status = 400, description = "`malformed` (the message names the field).", body = ErrorAnswer),
            (status = 401, description = "`unauthenticated`: terminal or MAC is not valid.", body = ErrorAnswer),
            (status = 403, description = "`unknown_terminal`.", body = ErrorAnswer),
            (status = 503, description = "`unreachable`: the centre cannot be asked; `busy`, `unavailable`.", body = ErrorAnswer),
        )
    )]
    const fn purse_open() {}

    #[utoipa::path(
        get, path = "/v1/health", operation_id = "health", tag = "node",
        summary = "Says whether taps are decided",
        responses(
            (status = 200, description = "Taps are decided.", body = HealthAnswer),
            (status = 503, description = "`unavailable`: not at the moment.", body = ErrorAnswer),
        )
    )]
    const fn health() {}
}

/// The document, as JSON.
pub fn json() -> String {
    let mut text = TerminalApi::openapi().to_pretty_json().expect("the document is plain data");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Write the file anew with `FEIQIAN_WRITE_DOCS=1 cargo test -p feiqian-node openapi`.
    #[test]
    fn the_openapi_document_in_docs_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/terminal-api.json");
        if std::env::var_os("FEIQIAN_WRITE_DOCS").is_some() {
            std::fs::write(path, json()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), json());
    }
}
