{{/* What the pods of operator and server have in common: the restricted profile, and where they run. Takes (list $ component). */}}
{{- define "limbeck.podSpec" -}}
{{- $top := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index $top.Values $component -}}
serviceAccountName: {{ include "limbeck.serviceAccountName" . }}
automountServiceAccountToken: true
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 1000
  runAsGroup: 1000
  fsGroup: 1000
  seccompProfile: {type: RuntimeDefault}
{{- with $top.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
{{- with $values.topologySpreadConstraints }}
  {{- toYaml . | nindent 2 }}
{{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "limbeck.selectorLabels" . | nindent 8 }}
{{- end }}
{{- end -}}

{{/* Metadata of a pod template. Takes (list $ component annotations). */}}
{{- define "limbeck.podMetadata" -}}
{{- $top := index . 0 -}}
{{- $values := index $top.Values (index . 1) -}}
labels:
  {{- include "limbeck.labels" . | nindent 2 }}
  {{- with $values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (deepCopy $values.podAnnotations) (index . 2) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "limbeck.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Takes (list port annotationScheme $). */}}
{{- define "limbeck.scrapeAnnotations" -}}
{{- if (index . 2).Values.metrics.annotations -}}
prometheus.io/scrape: "true"
prometheus.io/port: {{ index . 0 | quote }}
prometheus.io/path: /metrics
prometheus.io/scheme: {{ index . 1 }}
{{- end -}}
{{- end -}}
