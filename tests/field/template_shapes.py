"""Chat templates in the forms that published models have them, each written for these tests."""

from __future__ import annotations

WITH_VIDEO = (
    "{%- macro shown(content) -%}"
    "{%- if content is string -%}{{ content }}{%- else -%}"
    "{%- for part in content -%}"
    "{%- if part.type == 'video' or 'video' in part -%}<video>"
    "{%- elif part['type'] == 'image' -%}<image>"
    "{%- elif 'text' in part -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- endmacro -%}"
)
"""What many templates begin with: a message's parts in their order."""

SHAPES = {
    "chatml with a system prompt": WITH_VIDEO
    + """
{% if messages[0]['role'] != 'system' %}
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}
{% for message in messages %}
<|im_start|>{{ message.role }}
{{ shown(message.content) }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
""",
    "parts of a message filtered by type": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
        "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
        "{{ '<image>' }}{% endfor %}"
        "{% for part in message['content'] | selectattr('type', 'equalto', 'video') %}"
        "{{ '<video>' }}{% endfor %}"
        "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ '\n' + part['text'] }}{% endgeneration %}"
        "{% else %}{{ '\n' + part['text'] }}{% endif %}{% endfor %}"
        "{{ '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "vision counters in a namespace": """
{%- set seen = namespace(images=0, videos=0) -%}
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% for part in message['content'] -%}
{%- if part['type'] == 'video' -%}
{%- set seen.videos = seen.videos + 1 -%}
{%- if add_vision_id -%}Video {{ seen.videos }}: {% endif -%}<video>
{%- elif 'text' in part -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
""",
    "bos, instruction marks, eos": WITH_VIDEO
    + """
{{- bos_token -}}
{%- for message in messages -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif -%}
{%- if message['role'] == 'user' -%}
{{ '[INST] ' + shown(message['content']) | trim + ' [/INST]' }}
{%- else -%}{{ ' ' + shown(message['content']) | trim + ' ' + eos_token }}{%- endif -%}
{%- endfor -%}
""",
    "headers and a date": WITH_VIDEO
    + """
{{- bos_token }}
{%- if not date_string is defined %}
{%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Today Date: " + date_string + "\n\n" }}{{- "<|eot_id|>" }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
{{- shown(message['content']) | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
""",
    "turns with other names": WITH_VIDEO
    + """
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}
{% for message in messages %}
{% if message['role'] == 'assistant' %}{% set role = 'model' %}
{% else %}{% set role = message['role'] %}{% endif %}
{{ '<start_of_turn>' + role + '\n' + shown(message['content']) | trim + '<end_of_turn>\n' }}
{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}""",
    "roles as tokens": WITH_VIDEO
    + "{% for message in messages %}{{ '<|' ~ message.role ~ '|>\n' ~ shown(message.content)"
    " ~ '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}"
    "{% else %}{{ eos_token }}{% endif %}",
    "roles as words": WITH_VIDEO + "A chat between a curious user and an assistant. "
    "{% for m in messages %}{{ m.role | upper }}: {{ shown(m.content) }} "
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    "tools as JSON": WITH_VIDEO
    + """
{%- if tools %}{{ tools | tojson(indent=2) }}{% endif -%}
{%- if documents %}{{ documents | tojson }}{% endif -%}
<|im_start|>user
<video>
{{ {"b": messages[0].content[1].text, "a": ["é", "<b>", 1.5, none, true]} | tojson(indent=2) }}
{{ {"b": 1, "a": "ü&"} | tojson(false, 2) }}
{{ {"b": 1, "a": "ü&"} | tojson(sort_keys=true, ensure_ascii=true, separators=(",", ":")) }}
{{- "<|im_end|>\n<|im_start|>assistant\n" }}""",
    "loop controls": """
{%- for message in messages -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}{%- continue -%}{%- endif -%}
{%- if part.type == 'video' -%}<video>{%- continue -%}{%- endif -%}
{{ '\n' ~ part.text }}{%- break -%}
{%- endfor -%}{%- endfor -%}<|im_end|>
{%- generation -%}{{ '' }}{%- endgeneration -%}
""",
    "every name of a special token": "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}"
    "{{ sep_token }}{{ image_token }}<video>{{ messages[0].content[-1].text }}{{ eos_token }}",
    "filters and slices": """
{% set text = messages[-1]['content'] | map(attribute='text') | select('defined') | join(' ') %}
<video>{{ text.strip().split('\n')[-1] | replace('?', ' ?') }} {{ text[:40] | tojson }}
{{ dict(a=text | length) | items | list }} {{ '%s' | format(text) }} {{ text | title }}
{% for letter in text if letter != ' ' %}{{ loop.cycle('', '') }}{% endfor %}<|im_end|>""",
}
"""Every one renders a user's message with a video."""
