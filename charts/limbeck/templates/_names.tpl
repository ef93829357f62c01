{{- define "limbeck.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* The common beginning of all names; release `limbeck` gives `limbeck`. */}}
{{- define "limbeck.fullname" -}}
{{- $name := include "limbeck.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What a selector says: never changes. Takes (list $ component). */}}
{{- define "limbeck.selectorLabels" -}}
{{- $top := index . 0 -}}
app.kubernetes.io/name: {{ include "limbeck.name" $top }}
app.kubernetes.io/instance: {{ $top.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of every object. Takes (list $ component). */}}
{{- define "limbeck.labels" -}}
{{- $top := index . 0 -}}
{{ include "limbeck.selectorLabels" . }}
app.kubernetes.io/part-of: limbeck
app.kubernetes.io/version: {{ $top.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $top.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $top.Chart.Name $top.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Takes (list $ component). */}}
{{- define "limbeck.serviceAccountName" -}}
{{- $top := index . 0 -}}
{{- $account := (index $top.Values (index . 1)).serviceAccount -}}
{{- $made := printf "%s-%s" (include "limbeck.fullname" $top) (index . 1) -}}
{{- if $account.create -}}{{ default $made $account.name }}{{- else -}}{{ default "default" $account.name }}{{- end -}}
{{- end -}}

{{/* Takes (list $ image), image as in the values. */}}
{{- define "limbeck.image" -}}
{{- $top := index . 0 -}}
{{- $image := index . 1 -}}
{{- $repository := $image.repository -}}
{{- if $image.registry -}}{{- $repository = printf "%s/%s" (trimSuffix "/" $image.registry) $repository -}}{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default $top.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "limbeck.serverHost" -}}
{{ include "limbeck.fullname" . }}-server.{{ .Release.Namespace }}.svc
{{- end -}}
