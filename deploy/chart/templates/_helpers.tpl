{{- /* SPDX-License-Identifier: Apache-2.0 */ -}}

{{- define "fairlead.labels" -}}
app.kubernetes.io/name: fairlead
{{- end }}

{{- /* The address of an IPv4 CIDR or address as a number; empty for anything else. */ -}}
{{- define "fairlead.ipv4" -}}
{{- $addr := first (splitList "/" .) -}}
{{- if regexMatch "^[0-9]{1,3}(\\.[0-9]{1,3}){3}$" $addr -}}
{{- $n := 0 -}}
{{- range splitList "." $addr -}}{{- $n = add (mul $n 256) (atoi .) -}}{{- end -}}
{{- $n -}}
{{- end -}}
{{- end }}

{{- /* Fails unless it is said where the API server is, and not by its Service. The
agent checks, too, and knows more: IPv6, and what the cluster says. */ -}}
{{- define "fairlead.checkAPIServer" -}}
{{- $host := .Values.apiServer.host -}}
{{- $why := "the agent programs that Service itself, and after a reboot nothing would lead there before it has reached the API server. Give the address of a load balancer in front of the API servers, or of a control plane node" -}}
{{- if and $host .Values.kubeProxyConfigMap -}}
{{- fail "apiServer.host and kubeProxyConfigMap are both set: give one of them" -}}
{{- end -}}
{{- if not (or $host .Values.kubeProxyConfigMap) -}}
{{- fail "where is the API server? Set apiServer.host to an address that works without any Service, or, in a kubeadm cluster, kubeProxyConfigMap=kube-proxy" -}}
{{- end -}}
{{- if regexMatch "^kubernetes(\\.default(\\.svc(\\..*)?)?)?$" $host -}}
{{- fail (printf "apiServer.host %q is the name of the Service kubernetes: %s" $host $why) -}}
{{- end -}}
{{- $service := lookup "v1" "Service" "default" "kubernetes" -}}
{{- if and $host $service (has $host ($service.spec.clusterIPs | default list)) -}}
{{- fail (printf "apiServer.host %q is the cluster IP of the Service kubernetes: %s" $host $why) -}}
{{- end -}}
{{- $ip := include "fairlead.ipv4" $host -}}
{{- range $cidr := .Values.serviceCIDRs -}}
{{- $base := include "fairlead.ipv4" $cidr -}}
{{- if and $ip $base -}}
{{- $size := 1 -}}
{{- range until (int (sub 32 (atoi (last (splitList "/" $cidr))))) -}}{{- $size = mul $size 2 -}}{{- end -}}
{{- if eq (div (int64 $ip) $size) (div (int64 $base) $size) -}}
{{- fail (printf "apiServer.host %q is in serviceCIDRs %q, so it is a cluster IP: %s" $host $cidr $why) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- /* Fails if a setting is given that the file of kubeProxyConfigMap has, where it
would have no effect. */ -}}
{{- define "fairlead.checkFile" -}}
{{- if .Values.kubeProxyConfigMap -}}
{{- range $name := list "mode" "clusterCIDRs" "nodePortAddresses" "masqueradeAll" "metricsBindAddress" -}}
{{- if get $.Values $name -}}
{{- fail (printf "%s is set, and kubeProxyConfigMap, too: then it is the file config.conf in the ConfigMap %s that says so" $name $.Values.kubeProxyConfigMap) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- /* What the agent is told, in each of its containers. */ -}}
{{- define "fairlead.args" -}}
- --hostname-override=$(NODE_NAME)
{{- if .Values.kubeProxyConfigMap }}
- --config=/var/lib/kube-proxy/config.conf
{{- end }}
{{- with .Values.mode }}
- --proxy-mode={{ . }}
{{- end }}
{{- with .Values.clusterCIDRs }}
- --cluster-cidr={{ join "," . }}
{{- end }}
{{- with .Values.serviceCIDRs }}
- --service-cidrs={{ join "," . }}
{{- end }}
{{- with .Values.nodePortAddresses }}
- --nodeport-addresses={{ join "," . }}
{{- end }}
{{- if .Values.masqueradeAll }}
- --masquerade-all
{{- end }}
- --pod-masquerade={{ .Values.podMasquerade }}
- --host-ports={{ .Values.hostPorts }}
{{- with .Values.metricsBindAddress }}
- --metrics-bind-address={{ . }}
{{- end }}
{{- with .Values.startupTaint }}
- --startup-taint={{ . }}
{{- end }}
{{- range .Values.extraArgs }}
- {{ . | quote }}
{{- end }}
- -v={{ .Values.logLevel }}
{{- end }}

{{- define "fairlead.env" -}}
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
{{- with .Values.apiServer }}
{{- if .host }}
# The kubelet would set the cluster IP of the Service kubernetes.
- name: KUBERNETES_SERVICE_HOST
  value: {{ .host | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .port | quote }}
{{- end }}
{{- end }}
{{- end }}
