//! The official plugin `weather`, against a server that speaks as OpenWeatherMap does.

mod common;
#[path = "common/server.rs"]
mod server;

use std::io::Write;

use common::{host, prebuilt};
use serde_json::{Value, json};
use server::{Server, answer};
use trainer_plugin_host::tools::{Call, Outcome};
use trainer_plugin_host::{Grants, Limits, ToolContext};

const KEY: &str = "0123456789abcdef0123456789abcdef";

/// As <https://openweathermap.org/current> documents it.
fn service() -> Server {
    Server::start(|request, stream| {
        let query = request.split(' ').nth(1).and_then(|path| path.strip_prefix("/data/2.5/weather?")).unwrap_or_default();
        let value = |name: &str| query.split('&').filter_map(|p| p.split_once('=')).find(|(n, _)| *n == name).map_or("", |(_, v)| v);
        if value("appid") != KEY {
            let body = json!({"cod": 401, "message": format!("Invalid API key {}.", value("appid"))});
            return answer(stream, "401 Unauthorized", &body.to_string());
        }
        if value("q") != "S%C3%A3o%20Paulo" {
            return answer(stream, "404 Not Found", r#"{"cod":"404","message":"city not found"}"#);
        }
        let (description, temperature) = if value("units") == "metric" { ("few clouds", 21.04) } else { ("poucas nuvens", 69.87) };
        let body = json!({
            "coord": {"lon": -46.63, "lat": -23.54},
            "weather": [{"id": 801, "main": "Clouds", "description": description, "icon": "02d"}],
            "main": {"temp": temperature, "feels_like": 21.1, "pressure": 1018, "humidity": 70},
            "name": "São Paulo",
            "cod": 200,
        });
        answer(stream, "200 OK\r\ncontent-type: application/json", &body.to_string())
    })
}

/// What one call gives, in an episode of its own.
fn call(grants: &[&str], key: Option<&str>, settings: Value, place: &str) -> Result<Value, String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "{}", key.unwrap_or_default()).unwrap();
    let source = format!("file:{}", file.path().display());
    let secrets: Vec<(&str, &str)> = key.iter().map(|_| ("OPENWEATHER_API_KEY", source.as_str())).collect();
    let grants = Grants::parse(grants.iter().copied(), secrets).unwrap();
    let plugin = host().load_with(&prebuilt("weather"), Limits::default(), grants).unwrap();
    let mut session = plugin.tool_session(&ToolContext { settings, seed: 1, now_ms: 0 }).unwrap();
    let call = Call { name: "get_weather".into(), arguments: json!({ "loc": place }).to_string() };
    match session.call(&[call]).unwrap().pop().unwrap() {
        Outcome::Ok(json) => Ok(serde_json::from_str(&json).unwrap()),
        Outcome::ToolError(words) => Err(words),
    }
}

#[test]
fn the_weather_of_a_city() {
    let server = service();
    let grant = format!("http=http://{}", server.address);
    let settings = |more: Value| {
        let mut settings = json!({ "base_url": server.url("") });
        settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        settings
    };
    let with = |more: Value, place: &str| call(&[&grant], Some(KEY), settings(more), place);
    assert_eq!(with(json!({}), "São Paulo").unwrap(), json!({"location": "São Paulo", "weather": "few clouds", "temp_c": 21}));
    let imperial = json!({"units": "imperial", "lang": "pt"});
    assert_eq!(with(imperial, "São Paulo").unwrap(), json!({"location": "São Paulo", "weather": "poucas nuvens", "temp_f": 69.9}));
    assert_eq!(with(json!({"result": "full"}), "São Paulo").unwrap()["main"]["humidity"], 70);
    assert_eq!(with(json!({}), "Atlantis").unwrap_err(), "the weather service knows no city \"Atlantis\"");
    // A wrong key comes back from the service, and does not get to the model.
    let words = call(&[&grant], Some("a-wrong-key-of-mine"), settings(json!({})), "São Paulo").unwrap_err();
    assert_eq!(words, "the weather service refuses the API key (401): Invalid API key [secret OPENWEATHER_API_KEY].");
    assert!(server.requests().last().unwrap().contains("appid=a-wrong-key-of-mine&"));
}

#[test]
fn without_key_grant_or_network_the_tool_says_so() {
    assert_eq!(
        call(&[], None, json!({}), "Berlin").unwrap_err(),
        "plugin `weather` has no secret OPENWEATHER_API_KEY: grant it with --secret \
         weather:OPENWEATHER_API_KEY=env:OPENWEATHER_API_KEY, or in the recipe: [plugins.weather.secrets] OPENWEATHER_API_KEY = \
         \"env:OPENWEATHER_API_KEY\""
    );
    assert_eq!(
        call(&[], Some(KEY), json!({}), "Berlin").unwrap_err(),
        "plugin `weather` may not send GET to https://api.openweathermap.org: no server is granted to it; to allow it: --grant \
         weather:http=https://api.openweathermap.org, or in the recipe: [plugins.weather] grants = \
         [\"http=https://api.openweathermap.org\"]"
    );
    let server = service();
    let address = server.address;
    drop(server);
    let url = format!("http://{address}");
    let words = call(&[&format!("http={url}")], Some(KEY), json!({ "base_url": url }), "Berlin").unwrap_err();
    assert!(words.starts_with(&format!("plugin `weather`: no connection to {url}: ")), "{words}");
    // Settings name a server, they do not grant it.
    let words =
        call(&["http=https://api.openweathermap.org"], Some(KEY), json!({ "base_url": "http://localhost:1" }), "Berlin").unwrap_err();
    assert!(
        words.starts_with("plugin `weather` may not send GET to http://localhost:1: it is granted http=https://api.openweathermap.org;")
    );
}
