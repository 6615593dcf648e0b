#!/usr/bin/env bash
# Create what a deployment with TLS and authenticated nodes needs: a certificate authority, the SuperLink's certificate
# and a key pair for each node.
#
#     certificates.sh FOLDER ADDRESS NODES        for example: certificates.sh keys IP:127.0.0.1 4
#
# ADDRESS is the address at which nodes reach the SuperLink, as IP:… or DNS:…; the certificate is valid for it only.
set -euo pipefail
folder=$1 address=$2 nodes=$3
mkdir -p "$folder" && cd "$folder" && umask 077

openssl ecparam -name secp384r1 -genkey -noout -out ca.key
openssl req -x509 -new -key ca.key -sha384 -days 365 -subj "/CN=federation authority" -out ca.crt \
    -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign"

openssl ecparam -name secp384r1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out server.key
openssl req -new -key server.key -subj "/CN=superlink" -out server.csr
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -sha384 -days 365 -out server.crt \
    -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\n' "$address")
rm server.csr

for node in $(seq 0 $((nodes - 1))); do
    rm -f "node$node" "node$node.pub"
    ssh-keygen -q -t ecdsa -b 384 -N "" -C "node$node" -f "node$node"
done
