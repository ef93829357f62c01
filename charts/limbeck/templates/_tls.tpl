{{/* Name of the Secret with tls.crt, tls.key and ca.crt. */}}
{{- define "limbeck.tlsSecretName" -}}
{{- if eq .Values.server.tls.source "Secret" -}}
{{- required "`server.tls.secretName` must name a Secret with tls.crt, tls.key and ca.crt when `server.tls.source` is Secret" .Values.server.tls.secretName -}}
{{- else -}}
{{- include "limbeck.fullname" . }}-server-tls
{{- end -}}
{{- end -}}

{{/* What the server's certificate is good for, as a JSON list. */}}
{{- define "limbeck.serverNames" -}}
{{- $service := printf "%s-server" (include "limbeck.fullname" .) -}}
{{- $short := printf "%s.%s" $service .Release.Namespace -}}
{{- $names := list $service $short (printf "%s.svc" $short) (printf "%s.svc.cluster.local" $short) "localhost" -}}
{{- concat $names .Values.server.tls.extraDnsNames | toJson -}}
{{- end -}}

{{/*
Data of the generated Secret, as JSON: that of the Secret that is there if it was made for the same names, else new.
Made once in a rendering, so that the Secret and the checksum speak of the same certificate.
*/}}
{{- define "limbeck.generatedTls" -}}
{{- if not (hasKey .Values.server.tls "made") -}}
{{- $names := include "limbeck.serverNames" . -}}
{{- $there := lookup "v1" "Secret" .Release.Namespace (include "limbeck.tlsSecretName" .) | default dict -}}
{{- $data := dict -}}
{{- if eq (dig "metadata" "annotations" "limbeck.dev/server-names" "" $there) $names -}}
{{- $data = $there.data -}}
{{- else -}}
{{- $days := int .Values.server.tls.validityDays -}}
{{- $authority := genCAWithKey (printf "%s-ca" (include "limbeck.fullname" .)) $days (genPrivateKey "ecdsa") -}}
{{- $server := genSignedCertWithKey (include "limbeck.serverHost" .) nil (fromJsonArray $names) $days $authority (genPrivateKey "ecdsa") -}}
{{- $data = dict "ca.crt" (b64enc $authority.Cert) "tls.crt" (b64enc $server.Cert) "tls.key" (b64enc $server.Key) -}}
{{- end -}}
{{- $_ := set .Values.server.tls "made" (toJson $data) -}}
{{- end -}}
{{- .Values.server.tls.made -}}
{{- end -}}

{{/* Changes when pods must read the certificate anew. */}}
{{- define "limbeck.tlsChecksum" -}}
{{- if eq .Values.server.tls.source "Generated" -}}
{{- include "limbeck.generatedTls" . | sha256sum -}}
{{- else -}}
{{- toJson .Values.server.tls | sha256sum -}}
{{- end -}}
{{- end -}}
