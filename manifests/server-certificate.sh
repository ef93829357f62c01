#!/bin/sh
# Prints a Secret with a certificate for limbeck's server, good for ten years, from an authority whose key is thrown away.
#   manifests/server-certificate.sh [NAMESPACE] | kubectl apply -f -
set -eu
namespace=${1:-limbeck-system}
service=limbeck-server
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
new_key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1"; }
base64_of() { base64 <"$1" | tr -d '\n'; }

new_key ca.key
openssl req -x509 -new -key ca.key -subj "/CN=limbeck-ca" -days 3650 -out ca.crt \
  -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign"
new_key tls.key
openssl req -new -key tls.key -subj "/CN=$service.$namespace.svc" -out tls.csr
cat >names <<NAMES
subjectAltName=DNS:$service,DNS:$service.$namespace,DNS:$service.$namespace.svc,DNS:$service.$namespace.svc.cluster.local,DNS:localhost
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth
authorityKeyIdentifier=keyid
NAMES
openssl x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -extfile names -out tls.crt 2>/dev/null

cat <<SECRET
apiVersion: v1
kind: Secret
type: kubernetes.io/tls
metadata:
  name: limbeck-server-tls
  namespace: $namespace
data:
  ca.crt: $(base64_of ca.crt)
  tls.crt: $(base64_of tls.crt)
  tls.key: $(base64_of tls.key)
SECRET
