//! `weather`: the tool `get_weather`, the current weather of one city by OpenWeatherMap. Needs a granted server and a granted key; without
//! either, the tool's error says how to grant it.

pub mod service;

use serde::Deserialize;
use trainer_plugin_sdk::{Call, CallOutcome, Context, Executor, Session, Tool, http, plugin, secrets};

use crate::service::{Form, Units};

/// The secret's name, by which the user lends it.
const KEY: &str = "OPENWEATHER_API_KEY";
/// The tool's name.
const TOOL: &str = "get_weather";
/// The longest name of a place, in characters.
const LONGEST: usize = 200;

const ENGLISH: (&str, &str) = (
    "Look up the current weather of one city.",
    r#"{"type": "object", "properties": {"loc": {"type": "string", "description": "City name in English."}}, "required": ["loc"]}"#,
);
const TUTORIAL: (&str, &str) = (
    "查询即时天气函数，根据输入的城市名称，查询对应城市的实时天气 ，一次只能查询一个城市。",
    r#"{"type": "object", "properties": {"loc": {"description": "城市名称，注意，中国的城市需要用对应城市的英文名称代替。", "type": "string"}}, "required": ["loc"]}"#,
);

/// How the tool is described to the model.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Wording {
    /// In English.
    English,
    /// As in the Qwen3 tutorial.
    Tutorial,
}

/// See `settings.json`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The service's address.
    pub base_url: String,
    /// The units of the temperature.
    pub units: Units,
    /// The language of the description.
    pub lang: String,
    /// What the model gets.
    pub result: Form,
    /// How the tool is described.
    pub wording: Wording,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            base_url: "https://api.openweathermap.org".to_owned(),
            units: Units::Metric,
            lang: "en".to_owned(),
            result: Form::Short,
            wording: Wording::English,
        }
    }
}

/// The executor.
pub struct Weather(Settings);

/// An episode: nothing but the settings.
pub struct Stateless(Settings);

impl Executor for Weather {
    type Settings = Settings;
    type Session = Stateless;

    fn new(settings: Settings) -> Result<Self, String> {
        Ok(Self(settings))
    }

    fn tools(&self) -> Result<Vec<Tool>, String> {
        let (description, parameters) = match self.0.wording {
            Wording::English => ENGLISH,
            Wording::Tutorial => TUTORIAL,
        };
        Ok(vec![Tool { name: TOOL.to_owned(), description: description.to_owned(), parameters: parameters.to_owned(), mutates: false }])
    }

    fn open(&self, _: &Context) -> Result<Stateless, String> {
        Ok(Stateless(self.0.clone()))
    }
}

#[derive(Deserialize)]
struct Arguments {
    loc: String,
}

impl Stateless {
    fn answer(&self, call: &Call) -> Result<String, String> {
        if call.name != TOOL {
            return Err(format!("there is no tool {:?}; this one is called \"{TOOL}\"", call.name));
        }
        let arguments: Arguments =
            serde_json::from_str(&call.arguments).map_err(|e| format!("the arguments must be {{\"loc\": \"...\"}}: {e}"))?;
        let place = arguments.loc.trim();
        if place.is_empty() || place.chars().count() > LONGEST || place.chars().any(char::is_control) {
            return Err(format!("`loc` must be the name of a city: 1 to {LONGEST} characters, none of them a control character"));
        }
        let key = secrets::placeholder(KEY)?;
        let request = service::request(&self.0, place, &key);
        let response = http::fetch(&request).map_err(|e| e.words().to_owned())?;
        service::read(&self.0, place, &response)
    }
}

impl Session for Stateless {
    fn call(&mut self, call: &Call) -> CallOutcome {
        match self.answer(call) {
            Ok(json) => CallOutcome::Ok(json),
            Err(words) => CallOutcome::ToolError(words),
        }
    }
}

plugin! {
    name: "weather",
    description: "The current weather of a city, by OpenWeatherMap",
    settings_schema: include_str!("settings.json"),
    deterministic: false,
    needs: ["http: https://api.openweathermap.org", "secret: OPENWEATHER_API_KEY"],
    executor: Weather,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(name: &str, arguments: &str) -> String {
        match Stateless(Settings::default()).call(&Call { name: name.to_owned(), arguments: arguments.to_owned() }) {
            CallOutcome::ToolError(words) => words,
            CallOutcome::Ok(json) => panic!("{json}"),
        }
    }

    #[test]
    fn calls_that_never_reach_the_network() {
        assert_eq!(call("get_\u{1b}[2Jweather", "{}"), "there is no tool \"get_\\u{1b}[2Jweather\"; this one is called \"get_weather\"");
        assert!(call(TOOL, "{}").contains("missing field `loc`"));
        assert!(call(TOOL, "[").starts_with("the arguments must be {\"loc\": \"...\"}: "));
        for loc in ["", "  ", "Lon\r\ndon", "a\u{7f}b", "\u{9b}", &"x".repeat(201)] {
            let words = call(TOOL, &serde_json::json!({ "loc": loc }).to_string());
            assert_eq!(words, "`loc` must be the name of a city: 1 to 200 characters, none of them a control character", "{loc:?}");
        }
    }

    #[test]
    fn tools_are_worded_as_the_data_have_them() {
        for (settings, description) in [("{}", ENGLISH.0), (r#"{"wording": "tutorial"}"#, TUTORIAL.0)] {
            let tools = Weather::new(serde_json::from_str(settings).unwrap()).unwrap().tools().unwrap();
            assert_eq!((tools[0].name.as_str(), tools[0].description.as_str()), (TOOL, description));
            let schema: serde_json::Value = serde_json::from_str(&tools[0].parameters).unwrap();
            assert_eq!(schema["required"], serde_json::json!(["loc"]));
        }
    }

    #[test]
    fn the_schema_knows_every_setting() {
        let schema: serde_json::Value = serde_json::from_str(include_str!("settings.json")).unwrap();
        let defaults: serde_json::Map<_, _> =
            schema["properties"].as_object().unwrap().iter().map(|(k, v)| (k.clone(), v["default"].clone())).collect();
        let read: Settings = serde_json::from_value(defaults.into()).unwrap();
        assert_eq!(format!("{read:?}"), format!("{:?}", Settings::default()));
    }
}
