{{/* What the operator may do where jobs are; nothing else is ever asked for by limbeck.controller. */}}
{{- define "limbeck.operatorRules" -}}
- apiGroups: [limbeck.dev]
  resources: [compressionjobs]
  verbs: [get, list, watch, delete]
- apiGroups: [limbeck.dev]
  resources: [compressionjobs/status]
  verbs: [patch]
- apiGroups: [ray.io]
  resources: [rayjobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, create]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- if .Values.rbac.readSecrets }}
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
{{- end }}
{{- end -}}

{{/* What the server may do where jobs are. */}}
{{- define "limbeck.serverRules" -}}
- apiGroups: [""]
  resources: [pods]
  verbs: [get]
- apiGroups: [limbeck.dev]
  resources: [compressionjobs]
  verbs: [get]
- apiGroups: [limbeck.dev]
  resources: [compressionjobs/status]
  verbs: [patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end -}}

{{/*
Rights where jobs are: in all namespaces, or in those of watchNamespaces alone.
Takes (list $ component nameOfTheRulesTemplate).
*/}}
{{- define "limbeck.rightsWhereJobsAre" -}}
{{- $top := index . 0 -}}
{{- $component := index . 1 -}}
{{- $rules := include (index . 2) $top -}}
{{- $name := printf "%s-%s" (include "limbeck.fullname" $top) $component -}}
{{- $subjects := list (dict "kind" "ServiceAccount" "name" (include "limbeck.serviceAccountName" (list $top $component)) "namespace" $top.Release.Namespace) -}}
{{- range $namespace := default (list "") $top.Values.watchNamespaces }}
{{- $scope := ternary "Role" "ClusterRole" (ne $namespace "") }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $scope }}
metadata:
  name: {{ $name }}
  {{- with $namespace }}
  namespace: {{ . }}
  {{- end }}
  labels:
    {{- include "limbeck.labels" (list $top $component) | nindent 4 }}
rules:
  {{- $rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $scope }}Binding
metadata:
  name: {{ $name }}
  {{- with $namespace }}
  namespace: {{ . }}
  {{- end }}
  labels:
    {{- include "limbeck.labels" (list $top $component) | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ $scope }}
  name: {{ $name }}
subjects:
  {{- toYaml $subjects | nindent 2 }}
{{- end }}
{{- end -}}
