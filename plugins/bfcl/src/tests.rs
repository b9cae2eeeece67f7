use proptest::prelude::*;
use trainer_plugin_sdk::bindings::exports::trainer::eval_metric::metric::Call as AnswerCall;
use trainer_plugin_sdk::{
    Answer, CallArguments, Content, Finish, Formatter, Item, Metric, Outcome, Plan, Request, Response, Value as ScoreValue,
};

use crate::check::standardized;
use crate::literal::{Language, read};
use crate::value::{Int, Value};
use crate::{Bfcl, Settings};

const WEATHER: &str = r#"{"name": "get.weather", "description": "The weather.", "parameters": {"type": "dict", "properties": {
    "city": {"type": "string", "description": "Where."},
    "days": {"type": "integer", "description": "How many."},
    "scale": {"type": "float", "description": "A factor."},
    "exact": {"type": "boolean", "description": "No rounding."},
    "hours": {"type": "array", "items": {"type": "integer"}, "description": "At which hours."},
    "place": {"type": "dict", "description": "Coordinates.", "properties": {"lat": {"type": "float"}, "name": {"type": "string"}}},
    "stops": {"type": "array", "items": {"type": "dict"}, "description": "On the way."}
}, "required": ["city"]}}"#;

const TIME: &str = r#"{"name": "get_time", "description": "The time.", "parameters": {"type": "dict", "properties": {
    "city": {"type": "string", "description": "Where."}}, "required": ["city"]}}"#;

fn row(category: &str, functions: &[&str], truth: &str) -> String {
    format!(
        r#"{{"id": "{category}_3", "question": [[{{"role": "system", "content": "Be brief."}}, {{"role": "user", "content": "Well?"}}]],
            "function": [{}], "ground_truth": {truth}}}"#,
        functions.join(", ")
    )
}

fn metric(settings: &str) -> Bfcl {
    Metric::new(serde_json::from_str::<Settings>(settings).unwrap()).unwrap()
}

fn answer(calls: &[(&str, &str)]) -> Answer {
    let call = |(name, arguments): &(&str, &str)| AnswerCall {
        name: (*name).to_owned(),
        arguments: match arguments.strip_prefix("text:") {
            Some(text) => CallArguments::Text(text.to_owned()),
            None => CallArguments::Json((*arguments).to_owned()),
        },
    };
    Answer {
        raw: String::new(),
        text: String::new(),
        reasoning: String::new(),
        calls: calls.iter().map(call).collect(),
        malformed: Vec::new(),
        finish: Finish::Stop,
    }
}

/// The error's name, or `ok`.
fn verdict(row: &str, calls: &[(&str, &str)]) -> String {
    let scores = metric("{}").score(&Item { row: row.to_owned(), response: Response::Answers(vec![answer(calls)]) });
    assert_eq!(scores[0].name, "valid");
    let error = scores.iter().find(|s| s.name == "error_type").map(|s| match &s.value {
        ScoreValue::Text(text) => text.clone(),
        other => panic!("{other:?}"),
    });
    assert_eq!(scores[0].value, ScoreValue::Boolean(error.is_none()), "{scores:?}");
    error.unwrap_or_else(|| "ok".to_owned())
}

/// The verdict on one call of `get.weather`.
fn weather(allowed: &str, arguments: &str) -> String {
    verdict(&row("simple_python", &[WEATHER], &format!(r#"[{{"get.weather": {allowed}}}]"#)), &[("get.weather", arguments)])
}

#[test]
fn arguments_are_compared_by_their_types() {
    let city = r#"{"city": ["New York, NY"], "days": ["", 3], "scale": ["", 2.0], "exact": ["", true], "hours": ["", [1, 2]]}"#;
    for (arguments, expected) in [
        (r#"{"city": "New York, NY"}"#, "ok"),
        // Case, spaces and some punctuation of text do not count.
        (r#"{"city": "new-york NY."}"#, "ok"),
        (r#"{"city": "New York; NY"}"#, "value_error:string"),
        (r#"{"city": 3}"#, "type_error:simple"),
        (r#"{}"#, "simple_function_checker:missing_required"),
        (r#"{"city": "New York, NY", "state": "NY"}"#, "simple_function_checker:unexpected_param"),
        (r#"{"city": "New York, NY", "days": 3}"#, "ok"),
        (r#"{"city": "New York, NY", "days": 4}"#, "value_error:others"),
        // An integer is no float, but a float may be written as an integer.
        (r#"{"city": "New York, NY", "days": 3.0}"#, "type_error:simple"),
        (r#"{"city": "New York, NY", "scale": 2}"#, "ok"),
        (r#"{"city": "New York, NY", "scale": 2.0}"#, "ok"),
        (r#"{"city": "New York, NY", "scale": "2.0"}"#, "type_error:simple"),
        (r#"{"city": "New York, NY", "exact": true}"#, "ok"),
        (r#"{"city": "New York, NY", "exact": 1}"#, "type_error:simple"),
        (r#"{"city": "New York, NY", "hours": [1, 2]}"#, "ok"),
        (r#"{"city": "New York, NY", "hours": [2, 1]}"#, "value_error:list/tuple"),
        (r#"{"city": "New York, NY", "hours": 1}"#, "type_error:simple"),
        // The mark of what may be left out is itself allowed where text is, and stands in no other type's way.
        (r#"{"city": "New York, NY", "days": ""}"#, "type_error:simple"),
    ] {
        assert_eq!(weather(city, arguments), expected, "{arguments}");
    }
    assert_eq!(weather(r#"{"city": ["x"], "days": [3]}"#, r#"{"city": "x"}"#), "simple_function_checker:missing_optional");
    // Text among the allowed values of another type stands for a variable.
    assert_eq!(weather(r#"{"city": ["x"], "days": ["n"]}"#, r#"{"city": "x", "days": "n"}"#), "ok");
    assert_eq!(weather(r#"{"city": ["x"], "days": ["n"]}"#, r#"{"city": "x", "days": "N"}"#), "value_error:others");
    // Elements of a list are compared by type with those allowed.
    assert_eq!(weather(r#"{"city": ["x"], "hours": [[1, 2]]}"#, r#"{"city": "x", "hours": [1, "2"]}"#), "type_error:nested");
}

#[test]
fn objects_have_lists_of_allowed_values_for_each_key() {
    let allowed = r#"{"city": ["x"], "place": [{"lat": [1.5], "name": ["", "A-b"]}], "stops": ["", [{"name": ["C"]}, {"name": ["D"], "lat": ["", 2]}]]}"#;
    for (place, expected) in [
        (r#"{"lat": 1.5}"#, "ok"),
        (r#"{"name": "ab", "lat": 1.5}"#, "ok"),
        (r#"{"name": "ac", "lat": 1.5}"#, "value_error:dict_value"),
        (r#"{"name": "ab"}"#, "value_error:dict_key"),
        (r#"{"lat": 1.5, "height": 3}"#, "value_error:dict_key"),
        (r#"[1.5]"#, "type_error:simple"),
    ] {
        assert_eq!(weather(allowed, &format!(r#"{{"city": "x", "place": {place}}}"#)), expected, "{place}");
    }
    for (stops, expected) in [
        (r#"[{"name": "c"}, {"name": "d"}]"#, "ok"),
        (r#"[{"name": "c"}, {"name": "d", "lat": 2.0}]"#, "ok"),
        (r#"[{"name": "d"}, {"name": "c"}]"#, "value_error:dict_value"),
        (r#"[{"name": "c"}]"#, "value_error:list_dict_count"),
        // An empty string is as long as an empty list.
        (r#"[]"#, "ok"),
    ] {
        assert_eq!(weather(allowed, &format!(r#"{{"city": "x", "place": {{"lat": 1.5}}, "stops": {stops}}}"#)), expected, "{stops}");
    }
}

#[test]
fn categories_say_how_calls_are_matched() {
    let (a, b) = (("get.weather", r#"{"city": "a"}"#), ("get_time", r#"{"city": "b"}"#));
    let parallel = row("parallel_multiple", &[WEATHER, TIME], r#"[{"get.weather": {"city": ["a"]}}, {"get_time": {"city": ["b"]}}]"#);
    assert_eq!(verdict(&parallel, &[a, b]), "ok");
    assert_eq!(verdict(&parallel, &[b, a]), "ok");
    assert_eq!(verdict(&parallel, &[a]), "parallel_function_checker_no_order:wrong_count");
    assert_eq!(verdict(&parallel, &[a, a]), "parallel_function_checker_no_order:cannot_find_match");
    let multiple = row("live_multiple", &[WEATHER, TIME], r#"[{"get_time": {"city": ["b"]}}]"#);
    assert_eq!(verdict(&multiple, &[b]), "ok");
    assert_eq!(verdict(&multiple, &[("get.weather", r#"{"city": "b"}"#)]), "simple_function_checker:wrong_func_name");
    assert_eq!(verdict(&multiple, &[b, b]), "multiple_function_checker:wrong_count");
    let simple = row("simple", &[TIME], r#"[{"get_time": {"city": ["b"]}}]"#);
    assert_eq!(verdict(&simple, &[]), "simple_function_checker:wrong_count");
    assert_eq!(verdict(&simple, &[("get_time", r#"text:{"city": "b"}"#)]), "ast_decoder:decoder_failed");
    assert_eq!(verdict(&simple, &[("get_time", "[1]")]), "ast_decoder:decoder_failed");
    for (category, none, some) in
        [("live_irrelevance", "ok", "irrelevance_error:decoder_success"), ("live_relevance", "relevance_error:decoder_failed", "ok")]
    {
        let row = row(category, &[TIME], "null");
        assert_eq!(verdict(&row, &[]), none, "{category}");
        assert_eq!(verdict(&row, &[a]), some, "{category}");
        // Arguments that are no object make it no call.
        assert_eq!(verdict(&row, &[("get_time", "[1]")]), if category == "live_irrelevance" { "ok" } else { "ast_decoder:decoder_failed" });
    }
}

#[test]
fn rows_become_questions_with_tools() {
    let truth = r#"[{"get.weather": {"city": ["a"]}}]"#;
    let Plan::Ask(Request::Generate(question)) = metric("{}").prepare(&row("simple_python", &[WEATHER], truth)).unwrap() else { panic!() };
    let roles: Vec<&str> = question.conversation.messages.iter().map(|m| m.role.as_str()).collect();
    assert_eq!(roles, ["system", "user"]);
    assert!(matches!(&question.conversation.messages[1].content, Content::Text(t) if t == "Well?"));
    let tool: serde_json::Value = serde_json::from_str(&question.conversation.tools[0]).unwrap();
    let mut expected: serde_json::Value = serde_json::from_str(WEATHER).unwrap();
    expected["description"] = "The weather. Note that the provided function is in Python 3 syntax.".into();
    assert_eq!(tool, expected);
    let settings = r#"{"tools": "openai", "underscores": true, "enable_thinking": false, "max_new_tokens": 7}"#;
    let Plan::Ask(Request::Generate(question)) = metric(settings).prepare(&row("simple_python", &[WEATHER], truth)).unwrap() else {
        panic!()
    };
    assert_eq!((question.enable_thinking, question.max_new_tokens), (Some(false), Some(7)));
    let tool: serde_json::Value = serde_json::from_str(&question.conversation.tools[0]).unwrap();
    let parameters = &tool["function"]["parameters"];
    assert_eq!((tool["type"].as_str(), tool["function"]["name"].as_str()), (Some("function"), Some("get_weather")));
    assert_eq!(parameters["type"], "object");
    assert_eq!(parameters["properties"]["scale"]["type"], "number");
    assert_eq!(parameters["properties"]["stops"]["items"]["type"], "object");
    assert_eq!(parameters["properties"]["place"]["properties"]["lat"]["type"], "number");
}

#[test]
fn parameters_of_java_and_javascript_are_strings() {
    let function = r#"{"name": "f", "description": "F.", "parameters": {"type": "dict", "properties": {
        "a": {"type": "ArrayList", "items": {"type": "String"}, "description": "A."}, "b": {"type": "any", "description": "B."},
        "c": {"type": "dict", "properties": {"k": {"type": "String"}}, "description": "C."}}, "required": []}}"#;
    let tool = |category: &str| {
        let row = row(category, &[function], r#"[{"f": {"a": [["x"]], "b": ["y"]}}]"#);
        let Plan::Ask(Request::Generate(question)) = metric("{}").prepare(&row).unwrap() else { panic!() };
        serde_json::from_str::<serde_json::Value>(&question.conversation.tools[0]).unwrap()
    };
    let java = tool("simple_java");
    let properties = &java["parameters"]["properties"];
    assert_eq!(java["description"], "F. Note that the provided function is in Java 8 SDK syntax.");
    assert_eq!(
        properties["a"],
        serde_json::json!({ "type": "string", "description": "A. This is Java ArrayList type parameter in string representation. The list elements are of type String; they are not in string representation." })
    );
    assert_eq!(properties["b"]["description"], "B. This parameter can be of any type of Java object in string representation.");
    let javascript = tool("simple_javascript");
    let c = &javascript["parameters"]["properties"]["c"];
    assert!(c["description"].as_str().unwrap().ends_with(r#"they are not in string representation. {"k": {"type": "String"}}"#), "{c}");
    assert_eq!(c.get("properties"), None);
}

#[test]
fn rows_of_other_kinds_are_skipped_and_broken_ones_are_bad() {
    let m = metric("{}");
    for id in ["multi_turn_base_1", "memory_0-customer-0", "web_search_3", "format_sensitivity_1:x:simple_1", "exec_simple_1", "rest_1"] {
        assert!(matches!(m.prepare(&format!(r#"{{"id": "{id}"}}"#)).unwrap(), Plan::Skip(_)), "{id}");
    }
    let whole = row("simple", &[TIME], r#"[{"get_time": {"city": ["b"]}}]"#);
    for (from, to, pointer) in [
        ("\"simple_3\"", "\"what_3\"", "/id"),
        ("\"simple_3\"", "3", "/id"),
        ("\"id\"", "\"name\"", "/id"),
        ("\"question\"", "\"q\"", "/question"),
        ("[[{", "[[], [{", "/question"),
        ("\"role\": \"user\"", "\"role\": 7", "/question/0/1/role"),
        ("\"function\"", "\"f\"", "/function"),
        ("\"function\": [", "\"function\": [5, ", "/function/0"),
        ("\"ground_truth\"", "\"truth\"", "/ground_truth"),
        ("[{\"get_time\"", "[7, {\"get_time\"", "/ground_truth/0"),
        ("{\"city\": [\"b\"]}", "3", "/ground_truth/0"),
    ] {
        let broken = whole.replacen(from, to, 1);
        assert_ne!(broken, whole);
        assert_eq!(m.prepare(&broken).unwrap_err().pointer.to_string(), pointer, "{from} {to}");
    }
    // The category can stand in a column, and the answers can be the whole line of the leaderboard's file.
    let named = whole.replacen("\"simple_3\"", "\"mine\", \"category\": \"live_simple\"", 1);
    let named = named.replacen("\"ground_truth\": ", "\"possible_answer\": {\"id\": \"simple_3\", \"ground_truth\": ", 1) + "}";
    assert!(matches!(m.prepare(&named).unwrap(), Plan::Ask(_)));
    assert_eq!(verdict(&named, &[("get_time", r#"{"city": "b"}"#)]), "ok");
}

#[test]
fn summaries_are_by_category_and_failures_count_as_wrong() {
    let m = metric("{}");
    let score = |row: String, response| m.score(&Item { row, response });
    let time = |category| row(category, &[TIME], r#"[{"get_time": {"city": ["b"]}}]"#);
    let right = || Response::Answers(vec![answer(&[("get_time", r#"{"city": "b"}"#)])]);
    let samples = [
        score(time("simple"), right()),
        score(time("simple"), Response::Failed("too long".to_owned())),
        score(time("irrelevance"), Response::Answers(vec![answer(&[])])),
        score(time("simple"), Response::Answers(vec![answer(&[])])),
    ];
    let sums: Vec<(String, f64)> = m.aggregate(&samples).unwrap().into_iter().map(|a| (a.name, a.value)).collect();
    assert_eq!(sums, [("accuracy".to_owned(), 0.5), ("irrelevance".to_owned(), 1.0), ("simple".to_owned(), 1.0 / 3.0)]);
    assert!(m.aggregate(&[]).is_err());
}

#[test]
fn the_formatter_teaches_the_shortest_allowed_call() {
    let truth = r#"[{"get.weather": {"city": ["a", "A"], "days": [3, ""], "hours": [[4, 5], [6]], "place": [{"lat": [1.5, 2], "name": ["", "n"]}],
        "stops": [[{"name": ["s"], "lat": [1.0, 1]}]]}}, {"get_time": {"city": [""]}}]"#;
    let Outcome::Sample(sample) = Formatter::format(&metric("{}"), &row("parallel_multiple", &[WEATHER, TIME], truth)).unwrap() else {
        panic!()
    };
    let last = sample.messages.last().unwrap();
    let arguments: Vec<&str> = last
        .tool_calls
        .iter()
        .map(|c| match &c.arguments {
            CallArguments::Json(json) => json.as_str(),
            CallArguments::Text(text) => panic!("{text}"),
        })
        .collect();
    assert_eq!(last.role, "assistant");
    assert_eq!(
        arguments,
        [r#"{"city": "a", "hours": [4, 5], "place": {"lat": 1.5}, "stops": [{"name": "s", "lat": 1.0}]}"#, r#"{"city": ""}"#]
    );
    assert_eq!(sample.tools.len(), 2);
    // It is a call that the check takes.
    let calls: Vec<(&str, &str)> = last.tool_calls.iter().map(|c| c.name.as_str()).zip(arguments).collect();
    assert_eq!(verdict(&row("parallel_multiple", &[WEATHER, TIME], truth), &calls), "ok");
    for category in ["irrelevance", "live_relevance", "simple_java", "multi_turn_base"] {
        assert!(matches!(Formatter::format(&metric("{}"), &row(category, &[TIME], truth)).unwrap(), Outcome::Skip(_)), "{category}");
    }
}

#[test]
fn numbers_are_pythons() {
    let value = |text: &str| Value::parse(text).unwrap();
    for (a, b, equal) in [
        ("1", "1.0", true),
        ("true", "1", true),
        ("false", "0.0", true),
        ("true", "\"true\"", false),
        ("-0", "0", true),
        // An integer of any size is exact; a float next to it is another number.
        ("9007199254740993", "9007199254740992.0", false),
        ("9007199254740992", "9007199254740992.0", true),
        ("100000000000000000000000", "1e23", false),
        ("99999999999999991611392", "1e23", true),
        ("{\"a\": 1, \"b\": 2}", "{\"b\": 2.0, \"a\": true}", true),
        ("{\"a\": 1, \"a\": 2}", "{\"a\": 2}", true),
        ("[1, 2]", "[2, 1]", false),
        ("null", "0", false),
    ] {
        assert_eq!(value(a) == value(b), equal, "{a} {b}");
        assert_eq!(value(b) == value(a), equal, "{b} {a}");
    }
    for text in ["", "01", "1.", "+1", "[1,]", "{\"a\"}", "\"", "\"\\", "nul", "1 2", "{1: 2}", &"[".repeat(200)] {
        assert!(Value::parse(text).is_err(), "{text}");
    }
}

#[test]
fn literals_of_java_and_javascript() {
    let value = |language, text: &str, kind: &str, items| read(language, text, kind, items).unwrap().to_json();
    for (text, kind, items, expected) in [
        ("12L", "long", None, "12"),
        ("12", "long", None, "\"12\""),
        ("1.5f", "float", None, "1.5"),
        ("'c'", "char", None, "\"'c'\""),
        ("new ArrayList<String>(Arrays.asList(\"a\", \"b\"))", "ArrayList", Some("String"), "[\"a\", \"b\"]"),
        ("new ArrayList<>() {{ add(1); add(2); }}", "ArrayList", Some("integer"), "[1, 2]"),
        ("new ArrayList<Integer>()", "ArrayList", Some("integer"), "[]"),
        ("new int[]{1, 2L}", "Array", Some("integer"), "[1, \"2L\"]"),
        ("new HashMap<String, Object>() {{ put(\"k\", 1.5f); put(\"l\", \"m\"); }}", "HashMap", None, "{\"k\": 1.5, \"l\": \"m\"}"),
    ] {
        assert_eq!(value(Language::Java, text, kind, items), expected, "{text}");
    }
    for (text, kind, items, expected) in [
        ("'s'", "String", None, "\"s\""),
        ("12n", "Bigint", None, "12"),
        ("[1, 'two', true]", "array", None, "[1, \"two\", true]"),
        ("new Array(1, 2)", "array", Some("integer"), "[1, 2]"),
        ("[[1, 2], [3]]", "array", Some("array"), "[[1, 2], [3]]"),
        ("{'a': 1, b: [2, 3], c: x}", "dict", None, "{\"a\": 1, \"b\": [2, 3], \"c\": \"x\"}"),
    ] {
        assert_eq!(value(Language::JavaScript, text, kind, items), expected, "{text}");
    }
    assert_eq!(read(Language::Java, "new HashSet<>()", "Set", None).unwrap_err().kind, "checker_fails");
}

/// Lists of lists whose brackets lead nowhere: each is looked at once.
#[test]
fn hostile_literals_cost_little() {
    let many = |part: &str| part.repeat(3000);
    for text in [
        "[[".to_owned() + &many("],["),
        many("new ArrayList<"),
        format!("new ArrayList<>(){{{{{}", many(" ")),
        format!("new ArrayList<>(){{{{ {} }}}}", many("add(")),
        many("{a:"),
        many("new HashMap<>"),
        format!("new HashMap<>() {{{{ {} }}}}", many("put(\"")),
    ] {
        for (language, kind, items) in [
            (Language::JavaScript, "array", Some("String")),
            (Language::JavaScript, "dict", None),
            (Language::Java, "ArrayList", Some("String")),
            (Language::Java, "HashMap", None),
        ] {
            let began = std::time::Instant::now();
            let _ = read(language, &text, kind, items);
            assert!(began.elapsed() < std::time::Duration::from_secs(5), "{language:?} {kind} {}", &text[..20]);
        }
    }
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(Into::into),
        ".{0,8}".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::vec((".{0,4}", inner), 0..4).prop_map(|m| serde_json::Value::Object(m.into_iter().collect())),
        ]
    })
}

fn same(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(b) => Value::Bool(*b),
        serde_json::Value::Number(n) if n.is_f64() => Value::Float(n.as_f64().unwrap()),
        serde_json::Value::Number(n) => Value::Int(Int::parse(&n.to_string()).unwrap()),
        serde_json::Value::String(s) => Value::Str(s.clone()),
        serde_json::Value::Array(a) => Value::List(a.iter().map(same).collect()),
        serde_json::Value::Object(o) => Value::Dict(o.iter().map(|(k, v)| (k.clone(), same(v))).collect()),
    }
}

proptest! {
    #[test]
    fn json_is_read_as_serde_reads_it(value in json()) {
        let read = Value::parse(&value.to_string()).unwrap();
        prop_assert_eq!(&read, &same(&value));
        prop_assert_eq!(&Value::parse(&read.to_json()).unwrap(), &read);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[\\[\\]{}\":,0-9a-z\\\\ .eE+-]{0,30}") {
        // Python reads numbers that are too large for a float, as infinity.
        let too_large = |e: &serde_json::Error| e.to_string().contains("number out of range");
        prop_assert_eq!(Value::parse(&text).is_ok(), serde_json::from_str::<serde_json::Value>(&text).map_or_else(|e| too_large(&e), |_| true));
    }

    #[test]
    fn standardizing_twice_changes_nothing(text in ".{0,20}") {
        let once = standardized(&text);
        // Lower case of some letters is several characters, none of them upper case.
        prop_assert_eq!(standardized(&once), once);
    }

    /// Calls in any order, and arguments in any order, do not change the verdict of parallel rows.
    #[test]
    fn order_does_not_count(cities in prop::collection::vec("[a-e]{1,2}", 1..5), turn in 0usize..5) {
        let truth: Vec<String> = cities.iter().map(|c| format!(r#"{{"get_time": {{"city": ["{c}"]}}}}"#)).collect();
        let row = row("parallel", &[TIME], &format!("[{}]", truth.join(", ")));
        let arguments: Vec<String> = cities.iter().map(|c| format!(r#"{{"city": "{c}"}}"#)).collect();
        let mut calls: Vec<(&str, &str)> = arguments.iter().map(|a| ("get_time", a.as_str())).collect();
        let n = calls.len();
        calls.rotate_left(turn % n);
        prop_assert_eq!(verdict(&row, &calls), "ok");
    }
}
