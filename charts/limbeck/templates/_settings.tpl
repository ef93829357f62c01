{{/* A setting's value as the process reads it: JSON for lists, no exponent in whole numbers. */}}
{{- define "limbeck.settingValue" -}}
{{- if kindIs "float64" . -}}
{{- if eq (floor .) . -}}{{ int64 . }}{{- else -}}{{ . }}{{- end -}}
{{- else if or (kindIs "slice" .) (kindIs "map" .) -}}
{{- toJson . -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{/* Environment variables of `settings`. Takes (list prefix settings). */}}
{{- define "limbeck.settings" -}}
{{- $prefix := index . 0 -}}
{{- range $name, $value := index . 1 }}
- name: {{ $prefix }}{{ snakecase $name | upper }}
  value: {{ include "limbeck.settingValue" $value | quote }}
{{- end -}}
{{- end -}}
